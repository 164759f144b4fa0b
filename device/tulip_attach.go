package device

// The hypervisor's side of a legacy adapter: what an attachment may ask of it. All of it runs
// on the attachment's goroutine.

import (
	"context"
	"fmt"
	"os"
	"runtime/debug"
	"syscall"

	"polder/device/eventfd"
	"polder/device/guestmem"
	"polder/device/vfiouser"
)

// Info implements vfiouser.Device. The regions cannot be mapped by the client: every access
// has an effect, and QEMU gives up its shortcuts for a device with INTx that offers it.
func (t *Tulip) Info() vfiouser.Info {
	var i vfiouser.Info
	const rw = vfiouser.RegionReadable | vfiouser.RegionWritable
	i.Regions[regionBAR0] = vfiouser.RegionInfo{Size: bar0Size, Flags: rw}
	i.Regions[regionBAR1] = vfiouser.RegionInfo{Size: bar1Size, Flags: rw}
	i.Regions[regionConfig] = vfiouser.RegionInfo{Size: configSize, Flags: rw}
	if len(t.rom) > 0 {
		i.Regions[regionROM] = vfiouser.RegionInfo{Size: uint64(len(t.rom)), Flags: vfiouser.RegionReadable}
	}
	i.IRQs[vfiouser.IRQINTx] = 1
	return i
}

// Attach implements vfiouser.Device.
func (t *Tulip) Attach(peer string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stats.Attachments++
	t.state.Store(attached)
	t.log.Info("adapter attached", "peer", peer)
	return nil
}

// Detach implements vfiouser.Device: the adapter forgets the guest's memory and interrupt and
// is as new.
func (t *Tulip) Detach(cause error) {
	t.state.Store(detached)
	t.gate.Lock() // waits for a Pull that still lends guest memory
	defer t.gate.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.forget()
	if err := t.mem.Close(); err != nil {
		t.log.Error("cannot unmap guest memory", "err", err)
	}
	t.log.Info("adapter detached", "cause", cause)
}

// forget makes the adapter new again, but for its memory. Called with mu held.
func (t *Tulip) forget() {
	t.chip.Reset()
	t.backlog.clear()
	t.settle()
	t.stopResampling()
	t.intx.listen(nil)
	t.kicked = false
}

// Reset implements vfiouser.Device: PCI reset.
func (t *Tulip) Reset() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.chip.Reset()
	t.backlog.clear()
	t.settle()
	return nil
}

// MapDMA implements vfiouser.Device. A range that cannot be mapped is left out, and the log
// says what to do: an error would leave QEMU running with memory the adapter cannot reach,
// silently, or end it.
func (t *Tulip) MapDMA(r vfiouser.DMARegion) error {
	t.gate.Lock()
	defer t.gate.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	if r.File != nil {
		defer r.File.Close() // a mapping does not need it
	}
	g := guestmem.Region{GPA: r.IOVA, Size: r.Size, File: r.File, Offset: r.Offset, Read: r.Read, Write: r.Write}
	err := t.mem.Map(g)
	if err != nil {
		g.File, g.Offset = nil, 0
		_ = t.mem.Map(g) // it is out of reach, but there, so that to unmap it is no error
		t.log.Error("cannot map guest memory", "message", "DMA_MAP", "iova", fmt.Sprintf("%#x+%#x", r.IOVA, r.Size), "err", err)
	} else if r.File == nil && r.IOVA == 0 { // RAM, which begins there; a display's memory has no file either
		t.log.Warn("guest memory without a file: the adapter cannot reach it; start QEMU with -object memory-backend-memfd,share=on and -machine memory-backend=…",
			"message", "DMA_MAP", "iova", fmt.Sprintf("%#x+%#x", r.IOVA, r.Size))
	}
	return nil
}

// UnmapDMA implements vfiouser.Device. When it returns, nothing uses the range.
func (t *Tulip) UnmapDMA(iova, size uint64) error {
	t.gate.Lock()
	defer t.gate.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.mem.Unmap(iova, size)
}

// SetIRQs implements vfiouser.Device. MSI, MSI-X and the rest have no interrupts here, so that
// only their tearing down, which is none, arrives.
func (t *Tulip) SetIRQs(s vfiouser.IRQSet) error {
	if s.Index != vfiouser.IRQINTx {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch s.Action {
	case vfiouser.IRQMask, vfiouser.IRQUnmask:
		if s.Data == vfiouser.IRQEventFD {
			return t.unmaskBy(s)
		}
		if s.Data == vfiouser.IRQBool && s.Bools[0] == 0 {
			return nil
		}
		if s.Action == vfiouser.IRQMask {
			t.intx.mask()
		} else {
			t.intx.unmask()
		}
		return nil
	}
	return t.listen(s)
}

// listen sets or takes away the eventfd that interrupts the guest; without one, it is a test
// that the client makes of the one it has.
func (t *Tulip) listen(s vfiouser.IRQSet) error {
	switch {
	case len(s.Files) > 0:
		fd, err := eventfd.SignalOnly(s.Files[0])
		if err != nil {
			return fmt.Errorf("SET_IRQS: INTx: %w", err)
		}
		t.intx.listen(fd)
	case s.Count == 0: // takes everything down that was set up
		t.stopResampling()
		t.intx.listen(nil)
	case s.Data == vfiouser.IRQEventFD:
		t.intx.listen(nil)
	case s.Data == vfiouser.IRQNone || s.Bools[0] != 0:
		t.intx.test()
	}
	return nil
}

// unmaskBy takes the eventfd by which a hypervisor that has the line in the kernel (KVM) unmasks
// it: a goroutine waits on it instead of a message for each interrupt.
func (t *Tulip) unmaskBy(s vfiouser.IRQSet) error {
	if s.Action == vfiouser.IRQMask {
		closeFiles(s.Files)
		return syscall.EINVAL
	}
	t.stopResampling()
	if len(s.Files) == 0 {
		return nil
	}
	fd, err := eventfd.FromFile(s.Files[0])
	if err != nil {
		return fmt.Errorf("SET_IRQS: unmask INTx: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	t.resample = stop
	go func() {
		defer fd.Close()
		for fd.Wait(ctx) == nil {
			t.mu.Lock()
			if ctx.Err() == nil { // stopped, with mu held, means that the line may be another guest's
				t.intx.unmask()
			}
			t.mu.Unlock()
		}
	}()
	return nil
}

// stopResampling ends the goroutine of unmaskBy. Called with mu held.
func (t *Tulip) stopResampling() {
	if t.resample != nil {
		t.resample()
		t.resample = nil
	}
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// ReadRegion implements vfiouser.Device.
func (t *Tulip) ReadRegion(region int, off uint64, p []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	defer t.catch(debug.SetPanicOnFault(true))
	if err := t.failed(); err != nil {
		return err
	}
	switch region {
	case regionBAR0, regionBAR1:
		now := t.now()
		t.drain(now) // first, so that a driver that looks for frames in CSR5 sees these
		for i := 0; i < len(p); i += 4 {
			part := p[i:min(i+4, len(p))]
			putLE(part, t.chip.ReadIO(int(off+uint64(i))%csrSize, len(part), now))
		}
		t.settle() // CSR8 is cleared by reading, and time may have passed for the timer
	case regionConfig:
		for i := 0; i < len(p); i += 4 {
			part := p[i:min(i+4, len(p))]
			putLE(part, t.chip.ReadConfig(int(off)+i, len(part)))
		}
	case regionROM:
		copy(p, t.rom[off:])
	}
	return nil
}

// WriteRegion implements vfiouser.Device.
func (t *Tulip) WriteRegion(region int, off uint64, p []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	defer t.catch(debug.SetPanicOnFault(true))
	if err := t.failed(); err != nil {
		return err
	}
	switch region {
	case regionBAR0, regionBAR1:
		now := t.now()
		for i := 0; i < len(p); i += 4 {
			part := p[i:min(i+4, len(p))]
			t.chip.WriteIO(int(off+uint64(i))%csrSize, len(part), le(part), now)
		}
		t.drain(now) // last: what is acknowledged here is what was there before
	case regionConfig:
		for i := 0; i < len(p); i += 4 {
			part := p[i:min(i+4, len(p))]
			t.chip.WriteConfig(int(off)+i, len(part), le(part))
		}
	}
	t.settle()
	t.kicked = t.chip.TxPending()
	return nil
}

// le reads one to four bytes as a little-endian number, putLE writes them.
func le(p []byte) (v uint32) {
	for i, b := range p {
		v |= uint32(b) << (8 * i)
	}
	return v
}

func putLE(p []byte, v uint32) {
	for i := range p {
		p[i] = byte(v >> (8 * i))
	}
}

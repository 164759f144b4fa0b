package device

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"polder/device/eventfd"
	"polder/device/guestmem"
	"polder/device/vfiouser"
	"polder/tulip"
	"polder/vswitch"
)

// headLen is how much of a frame is copied out of the sender's reach before it is judged:
// every header that the switch looks at fits.
const headLen = 128

// The regions of the adapter.
const (
	regionBAR0   = 0 // I/O: the CSRs
	regionBAR1   = 1 // memory: the CSRs
	regionROM    = vfiouser.RegionROM
	regionConfig = vfiouser.RegionConfig
)

// Sizes of the regions, in bytes. The CSRs take csrSize and repeat through BAR1.
const (
	csrSize    = 128
	bar0Size   = 128
	bar1Size   = 4096
	configSize = 256
)

// TulipConfig is what an adapter needs to know about itself.
type TulipConfig struct {
	Name string      // of the port, for the log
	MAC  vswitch.MAC // goes into the SROM
	ROM  []byte      // PCI expansion ROM; nil for none. Kept, not copied
	Log  *slog.Logger
}

// Tulip is a legacy adapter: a 21140 that a hypervisor attaches over vfio-user, on a port of
// the switch. It implements vswitch.Port, vfiouser.Device and Queue.
type Tulip struct {
	log   *slog.Logger
	rom   []byte // padded to the size of its BAR
	epoch time.Time

	wake chan struct{} // has room for one: the timer has started the transmitter

	gate sync.RWMutex // see the package comment

	mu       sync.Mutex // guards what follows; never held while the switch is called
	mem      guestmem.Map
	chip     *tulip.Chip
	intx     intx
	deadline *time.Timer // fires at chip.Deadline, or when the backlog is looked at again
	armedFor int64       // what deadline is set to, ns since epoch; 0 for off
	resample func()      // ends the goroutine that waits for a kernel's unmask; nil: none
	parts    [][]byte    // of the frame that is being received
	backlog  backlog
	stats    TulipStats

	state  atomic.Int32          // detached, attached or faulted
	faults atomic.Uint64         // TulipStats.Faults
	fault  atomic.Pointer[error] // the last one's cause

	kicked bool // the guest has given the chip work; of the attachment's goroutine alone

	pullMu sync.Mutex                      // guards what a Pull uses; taken before gate
	in     atomic.Pointer[vswitch.Ingress] // nil unless Run runs; stored with pullMu held
	tx     [pullBudget]tulip.TxFrame
	frames [pullBudget]vswitch.Frame
	heads  [pullBudget][headLen]byte
	bodies [pullBudget][][]byte
}

// States of an adapter.
const (
	detached int32 = iota
	attached       // there is a guest whose memory may be touched
	faulted        // it is not to be trusted: the attachment ends at its next access
)

// TulipStats counts what the adapter itself drops; the switch counts the rest.
type TulipStats struct {
	Attachments uint64 // connections of a hypervisor so far
	Attached    bool   // one is there now
	Filtered    uint64 // frames not for this guest, by its own address filter
	Queued      uint64 // frames that waited in the backlog for a descriptor
	Oversize    uint64 // frames longer than an MTU of 1500 permits
	NoBuffer    uint64 // frames for which there was no descriptor and no room to wait; CSR8 counts one for each Deliver
	Stopped     uint64 // frames while the guest's driver was not receiving
	Faults      uint64 // attachments ended because the hypervisor broke what it shares: memory, interrupt
}

var (
	_ vswitch.Port    = (*Tulip)(nil)
	_ vfiouser.Device = (*Tulip)(nil)
	_ vfiouser.Worker = (*Tulip)(nil)
	_ Queue           = (*Tulip)(nil)
)

// NewTulip returns an adapter with nothing attached. Its timers run until Close.
func NewTulip(c TulipConfig) (*Tulip, error) {
	rom, err := padROM(c.ROM)
	if err != nil {
		return nil, err
	}
	t := &Tulip{
		log:   c.Log.With("port", c.Name),
		rom:   rom,
		epoch: time.Now(),
		wake:  make(chan struct{}, 1),
	}
	t.chip = tulip.New((*bus)(t), tulip.Config{MAC: c.MAC, ROMSize: uint32(len(rom))})
	t.intx.stuck = func() { t.fail(eventfd.ErrStuck) }
	t.intx.timer = time.AfterFunc(time.Hour, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.intx.due()
	})
	t.intx.timer.Stop()
	t.deadline = time.AfterFunc(time.Hour, t.tick)
	t.deadline.Stop()
	return t, nil
}

// Smallest and largest expansion ROM window: PCI 2.1 section 6.2.5.2 has the lowest address
// bit at 11; the 21140 decodes up to 256 KiB.
const (
	minROM = 2 << 10
	maxROM = 256 << 10
)

// padROM returns rom in a buffer as large as its window, a power of two.
func padROM(rom []byte) ([]byte, error) {
	if len(rom) == 0 {
		return nil, nil
	}
	if len(rom) > maxROM {
		return nil, fmt.Errorf("expansion ROM of %d bytes: the 21140 has room for %d", len(rom), maxROM)
	}
	size := minROM
	for size < len(rom) {
		size *= 2
	}
	padded := make([]byte, size)
	for i := copy(padded, rom); i < size; i++ {
		padded[i] = 0xff
	}
	return padded, nil
}

// Run sends through in what the guest has to send, until ctx is done. What the guest starts is sent
// by the attachment's goroutine (Work); this one waits for what the chip's timer starts.
func (t *Tulip) Run(ctx context.Context, in *vswitch.Ingress) {
	t.pullMu.Lock()
	t.in.Store(in)
	t.pullMu.Unlock()
	work(ctx, t, pullBudget, nil)
	t.pullMu.Lock()
	t.in.Store(nil)
	t.pullMu.Unlock()
}

// Work implements vfiouser.Worker: it sends what the guest has just given the chip. On the
// attachment's own goroutine that is one thread less to wake for each frame, which costs more than the frame.
func (t *Tulip) Work() (more bool) {
	if t.kicked {
		t.Pull(pullBudget)
		t.kicked = t.Arm()
	}
	return t.kicked
}

// Close ends the adapter after its attachment and its worker have ended.
func (t *Tulip) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.forget()
	t.intx.timer.Stop()
	t.deadline.Stop()
	return t.mem.Close()
}

// SetLink tells the adapter whether its cable is plugged in. The guest's driver sees it when it next reads
// the PHY. A new adapter has a link, and a reset leaves it as it is.
func (t *Tulip) SetLink(up bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.chip.SetLink(up)
}

// Stats returns the adapter's counters.
func (t *Tulip) Stats() TulipStats {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.stats
	s.Attached = t.state.Load() != detached
	s.Faults = t.faults.Load()
	return s
}

// now is the chip's clock: nanoseconds since the adapter was made, monotonic.
func (t *Tulip) now() int64 { return int64(time.Since(t.epoch)) }

// settle brings the outside in line with the chip after an operation on it: the interrupt
// line and the timer. Called with mu held.
func (t *Tulip) settle() {
	t.intx.settle()
	at, ok := t.chip.Deadline()
	if !ok {
		at = 0
	}
	if t.backlog.count > 0 {
		again := t.now() + int64(drainDelay)
		if t.armedFor != 0 {
			again = min(again, t.armedFor) // a busy sender does not put it off
		}
		if !ok || again < at {
			at, ok = again, true
		}
	}
	if at == t.armedFor {
		return
	}
	t.armedFor = at
	if !ok {
		t.deadline.Stop()
		return
	}
	t.deadline.Reset(time.Duration(at - t.now()))
}

// tick runs when the chip's deadline has come.
func (t *Tulip) tick() {
	t.mu.Lock()
	defer t.mu.Unlock()
	defer t.catch(debug.SetPanicOnFault(true))
	t.armedFor = 0
	now := t.now()
	t.chip.Tick(now)
	t.drain(now)
	t.settle()
	if t.chip.TxPending() {
		select {
		case t.wake <- struct{}{}:
		default: // Run is awake, or will be
		}
	}
}

// catch is deferred by whatever touches guest memory. If this guest's memory went away under it, the
// adapter stops, and the attachment ends at its next access. Another guest's is its own
// adapter's affair.
//
// It must run while mu or gate is still held, that is, be deferred after their Unlock: once the memory
// is unmapped nobody can tell any more whose it was.
func (t *Tulip) catch(before bool) {
	debug.SetPanicOnFault(before)
	p := recover()
	if p == nil {
		return
	}
	addr, ok := guestmem.FaultAddress(p)
	if !ok || !t.mem.Owns(addr) {
		panic(p)
	}
	t.fail(guestmem.ErrFault)
}

// fail stops an adapter whose hypervisor breaks what it shares; the attachment ends at its next access.
func (t *Tulip) fail(cause error) {
	if t.state.CompareAndSwap(attached, faulted) { // not two at once, nor an attachment that is ending
		t.faults.Add(1)
		t.fault.Store(&cause)
		t.log.Error("the adapter stops: its hypervisor breaks what it shares", "err", cause)
	}
}

// failed returns the error that ends the attachment; nil if there is none.
func (t *Tulip) failed() error {
	if t.state.Load() != faulted {
		return nil
	}
	if cause := t.fault.Load(); cause != nil {
		return fmt.Errorf("the hypervisor broke what it shares: %w", *cause)
	}
	return guestmem.ErrFault // on its way
}

// Pull implements Queue.
func (t *Tulip) Pull(budget int) (n int) {
	if t.state.Load() != attached {
		return 0
	}
	t.pullMu.Lock()
	defer t.pullMu.Unlock()
	in := t.in.Load()
	if in == nil {
		return 0
	}
	t.gate.RLock()
	defer t.gate.RUnlock()
	defer t.catch(debug.SetPanicOnFault(true))
	n = t.poll(min(budget, len(t.tx)))
	if n == 0 {
		return 0
	}
	defer t.reclaim(n)
	for i := range n {
		t.lend(i)
	}
	in.Forward(t.frames[:n])
	t.finish(n)
	return n
}

func (t *Tulip) poll(budget int) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.chip.PollTx(t.tx[:budget], t.now())
	t.settle() // a set-up frame may have been closed with an interrupt
	return n
}

func (t *Tulip) finish(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.chip.FinishTx(n, t.now())
	t.settle() // besides the interrupt: automatic polling starts when the list is empty
}

// lend makes frames[i] of tx[i]: its head private, the rest in guest memory.
func (t *Tulip) lend(i int) {
	head, body := t.heads[i][:0], t.bodies[i][:0]
	for _, p := range t.tx[i].Parts {
		k := min(headLen-len(head), len(p))
		head = append(head, p[:k]...)
		if k < len(p) {
			body = append(body, p[k:])
		}
	}
	t.bodies[i] = body
	t.frames[i] = vswitch.Frame{Head: head, Body: body, Len: t.tx[i].Len}
}

// reclaim forgets n frames that were lent. Slices of memory that is unmapped later must not be left for the
// garbage collector to find.
func (t *Tulip) reclaim(n int) {
	clear(t.tx[:n])
	clear(t.frames[:n])
	for i := range n {
		clear(t.bodies[i])
	}
}

// reclaimParts forgets the sender's memory, as reclaim does the guest's own.
func (t *Tulip) reclaimParts() { clear(t.parts) }

// maxTulipFrame is the longest frame that a legacy adapter's guest gets, in bytes without FCS: an MTU of 1500 and a VLAN
// tag. The chip would receive longer ones, but no Ethernet it was on had any, and drivers' buffers are for these.
const maxTulipFrame = vswitch.HeaderLen + 4 + 1500

// Deliver implements vswitch.Port. A frame that is too long or that the guest's own filter rejects has arrived, and one for which
// there is no descriptor waits in the backlog. When that is full, or the driver does not receive, the frame and
// those behind it are lost.
func (t *Tulip) Deliver(frames []*vswitch.Frame) (n int) {
	if t.state.Load() != attached {
		return 0
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	defer t.catch(debug.SetPanicOnFault(true))
	defer t.reclaimParts()
	defer t.settle() // also if a sender's memory vanishes: what came before it has arrived
	now := t.now()
	t.drain(now)
	for n < len(frames) {
		if frames[n].Len > maxTulipFrame {
			t.stats.Oversize++
			n++
			continue
		}
		switch t.deliver(frames[n], now) {
		case tulip.RxFiltered:
			t.stats.Filtered++
		case tulip.RxNoBuffer:
			t.stats.NoBuffer += uint64(len(frames) - n)
			return n
		case tulip.RxStopped:
			t.stats.Stopped += uint64(len(frames) - n)
			return n
		}
		n++
	}
	return n
}

// deliver gives the guest one frame, or keeps it: then it counts as accepted. RxNoBuffer and RxStopped mean that it
// is lost.
func (t *Tulip) deliver(f *vswitch.Frame, now int64) tulip.RxResult {
	r := t.chip.Probe(f.Head)
	switch {
	case r == tulip.RxFiltered || r == tulip.RxStopped:
		return r
	case r == tulip.RxAccepted && t.backlog.count == 0:
		t.reclaimParts()
		t.parts = append(append(t.parts[:0], f.Head), f.Body...)
		return t.chip.Receive(t.parts, now)
	case t.backlog.push(f):
		t.stats.Queued++
		return tulip.RxAccepted
	}
	t.chip.Miss()
	return tulip.RxNoBuffer
}

// drainBudget bounds what one access of the guest may have to wait for, in frames.
const drainBudget = 64

// drainDelay is when the backlog is looked at again if the guest does not touch the adapter: a driver may
// free descriptors and look for frames in memory alone.
const drainDelay = time.Millisecond

// drain gives the guest what waits for it, as far as there are descriptors by now. It touches guest memory. Called
// with mu held.
func (t *Tulip) drain(now int64) {
	for range drainBudget {
		p := t.backlog.first()
		if p == nil {
			return
		}
		switch t.chip.Probe(p) {
		case tulip.RxNoBuffer:
			return
		case tulip.RxStopped:
			t.stats.Stopped += t.backlog.clear()
			return
		}
		t.parts = append(t.parts[:0], p)
		switch t.chip.Receive(t.parts, now) {
		case tulip.RxFiltered: // by a filter that is newer than the frame
			t.stats.Filtered++
		case tulip.RxNoBuffer: // for its end
			t.stats.NoBuffer++
		}
		t.backlog.pop()
	}
}

// bus is the adapter as its chip sees it: the guest's memory and the interrupt pin. mu is held.
type bus Tulip

// Window implements tulip.Bus.
func (b *bus) Window(addr uint32, n int) []byte { return b.mem.Window(uint64(addr), n, true) }

// Read implements tulip.Bus.
func (b *bus) Read(addr uint32, p []byte) error { return b.mem.Read(uint64(addr), p) }

// Write implements tulip.Bus.
func (b *bus) Write(addr uint32, p []byte) error { return b.mem.Write(uint64(addr), p) }

// SetINTA implements tulip.Bus.
func (b *bus) SetINTA(asserted bool) { b.intx.level = asserted }

// Arm implements Queue: whoever gives the chip work sees to it, so there is nothing to ask for. Without Run
// nothing is pending: there is nowhere to send it, and Run begins with a Pull.
func (t *Tulip) Arm() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.state.Load() == attached && t.in.Load() != nil && t.chip.TxPending()
}

// Wait implements Queue.
func (t *Tulip) Wait(ctx context.Context) error {
	select {
	case <-t.wake:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

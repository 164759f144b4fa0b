package vfiouser_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"

	"polder/device/vfiouser"
	"polder/device/vfiouser/vfiousertest"
)

// A fake is a device with one BAR of each kind that remembers what was asked of it.
type fake struct {
	mu    sync.Mutex
	calls []string // one line each
	irqs  []vfiouser.IRQSet
	maps  []vfiouser.DMARegion
	bar   [256]byte
	fail  error         // what ReadRegion, WriteRegion and MapDMA return
	gone  chan error    // gets the cause of each Detach, if not nil
	stall chan struct{} // if not nil, Detach waits for it to be closed
}

func (d *fake) record(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls = append(d.calls, fmt.Sprintf(format, args...))
}

// asked returns the calls so far and forgets them.
func (d *fake) asked() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	calls := d.calls
	d.calls = nil
	return calls
}

func (d *fake) Info() vfiouser.Info {
	info := vfiouser.Info{IRQs: [vfiouser.NumIRQs]uint32{1}}
	info.Regions[0] = vfiouser.RegionInfo{Size: 128, Flags: vfiouser.RegionReadable | vfiouser.RegionWritable}
	info.Regions[1] = vfiouser.RegionInfo{Size: 128, Flags: vfiouser.RegionReadable | vfiouser.RegionWritable}
	info.Regions[vfiouser.RegionROM] = vfiouser.RegionInfo{Size: 1 << 20, Flags: vfiouser.RegionReadable}
	info.Regions[vfiouser.RegionConfig] = vfiouser.RegionInfo{Size: 256, Flags: vfiouser.RegionReadable | vfiouser.RegionWritable}
	return info
}

func (d *fake) Attach(peer string) error {
	d.record("attach")
	return nil
}

func (d *fake) Detach(cause error) {
	d.record("detach: %v", cause)
	d.mu.Lock()
	for _, m := range d.maps {
		if m.File != nil {
			m.File.Close()
		}
	}
	for _, set := range d.irqs {
		for _, f := range set.Files {
			f.Close()
		}
	}
	d.maps, d.irqs = nil, nil
	d.mu.Unlock()
	if d.gone != nil {
		d.gone <- cause
	}
	if d.stall != nil {
		<-d.stall
	}
}

func (d *fake) ReadRegion(region int, off uint64, p []byte) error {
	if d.fail == nil && region < 2 {
		copy(p, d.bar[off:])
	}
	return d.fail
}

func (d *fake) WriteRegion(region int, off uint64, p []byte) error {
	if d.fail == nil && region < 2 {
		copy(d.bar[off:], p)
	}
	return d.fail
}

func (d *fake) MapDMA(r vfiouser.DMARegion) error {
	d.record("map %#x+%#x offset %#x read %t write %t file %t", r.IOVA, r.Size, r.Offset, r.Read, r.Write, r.File != nil)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.maps = append(d.maps, r)
	return d.fail
}

func (d *fake) UnmapDMA(iova, size uint64) error {
	d.record("unmap %#x+%#x", iova, size)
	return nil
}

func (d *fake) SetIRQs(set vfiouser.IRQSet) error {
	d.record("irqs %d %d+%d action %#x data %#x bools %v files %d", set.Index, set.Start, set.Count, set.Action, set.Data, set.Bools, len(set.Files))
	d.mu.Lock()
	defer d.mu.Unlock()
	d.irqs = append(d.irqs, set)
	return nil
}

func (d *fake) Reset() error {
	d.record("reset")
	return nil
}

// connect serves dev to a client until the test ends. The log goes to the returned buffer, which
// may be read when end has returned, which it does when the connection has come to its end.
func connect(t testing.TB, dev vfiouser.Device) (c *vfiousertest.Client, end func() (string, error)) {
	t.Helper()
	c, conn, err := vfiousertest.Pair()
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	log := slog.New(slog.NewTextHandler(&text, nil))
	done := make(chan error, 1)
	go func() { done <- vfiouser.ServeConn(t.Context(), conn, dev, log, "port7") }()
	end = sync.OnceValues(func() (string, error) {
		err := <-done
		return text.String(), err
	})
	t.Cleanup(func() {
		c.Close()
		end()
	})
	return c, end
}

func TestRegionsAndMemory(t *testing.T) {
	dev := &fake{}
	c, _ := connect(t, dev)
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	ram, err := vfiousertest.Memfd(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer ram.Close()
	if err := c.MapDMA(0, 1<<20, ram, 0); err != nil {
		t.Fatal(err)
	}
	if err := c.SetINTx(); err != nil {
		t.Fatal(err)
	}
	if err := c.RegionWrite(0, 8, []byte{1, 2, 3, 4}); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4)
	if err := c.RegionRead(1, 8, got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, []byte{1, 2, 3, 4}) {
		t.Errorf("read %v", got)
	}
	want := []string{
		"attach",
		"map 0x0+0x100000 offset 0x0 read true write true file true",
		"irqs 0 0+1 action 0x20 data 0x4 bools [] files 1",
	}
	if got := dev.asked(); !slices.Equal(got, want) {
		t.Errorf("the device was asked\n%q, want\n%q", got, want)
	}
}

func BenchmarkRegionRead(b *testing.B) {
	c, _ := connect(b, &fake{})
	if err := c.Handshake(); err != nil {
		b.Fatal(err)
	}
	var p [4]byte
	b.ReportAllocs()
	for b.Loop() {
		if err := c.RegionRead(0, 0x28, p[:]); err != nil {
			b.Fatal(err)
		}
	}
}

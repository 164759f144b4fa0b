package porttest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"polder/vswitch"
)

// Batch is how many frames of its longest length an empty port must have room
// for.
const Batch = 16

// Harness is a port under test with its receiver.
type Harness struct {
	Port vswitch.Port

	// Take returns the frames the receiver has got since the last Take, in
	// order, and makes their room free again. It waits until everything that
	// earlier calls of Deliver took has come through. It may be called while
	// Deliver runs, and the result is the caller's.
	Take func() [][]byte

	// Close closes the port. It may be called while Deliver runs.
	Close func()

	// Stall keeps the receiver from making room until the next Take. It is nil
	// if nothing but Take makes room.
	Stall func()

	// Address is where the receiver listens. The zero value stands for
	// broadcast.
	Address vswitch.MAC

	// MaxLen is the length in bytes of the longest frame the port takes. The
	// zero value stands for 1514.
	MaxLen int
}

// TestPort tests that a port keeps the contract of vswitch.Port: frames arrive
// whole, in order and counted; nothing of the caller's is changed or kept; a
// full port drops and recovers; a closed one takes nothing; senders do not
// disturb one another; and Deliver does not allocate.
//
// start makes a new port for each of these tests, and cleans up with t.Cleanup.
// The test that calls TestPort must not be parallel.
func TestPort(t *testing.T, start func(t *testing.T) Harness) {
	for _, c := range checks {
		t.Run(c.name, func(t *testing.T) {
			if err := c.check(start(t).withDefaults()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

var checks = []struct {
	name  string
	check func(Harness) error
}{
	{"empty batch", checkEmpty},
	{"content", checkContent},
	{"order", checkOrder},
	{"full", checkFull},
	{"close", checkClose},
	{"senders", checkSenders},
	{"allocations", checkAllocations},
}

func (h Harness) withDefaults() Harness {
	if h.Stall == nil {
		h.Stall = func() {}
	}
	if h.Address == (vswitch.MAC{}) {
		h.Address = vswitch.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	}
	if h.MaxLen == 0 {
		h.MaxLen = 1514
	}
	return h
}

// tooMany is a number of frames that no port holds, unless it has no bound.
const tooMany = 1 << 16

// minLen is the length of the shortest frame used: a receiver may pad a
// shorter one, as Ethernet asks for.
const minLen = 60

// frame is one frame of a test: a number that tells it from others, its bytes,
// and how they are cut into Head and Body.
type frame struct {
	number int
	bytes  []byte
	cuts   []int // lengths of Head and of the parts of Body but the last
}

// frame makes frame number n of a sender. Its payload is the number and bytes
// that depend on it.
func (h Harness) frame(sender byte, number, length int, cuts ...int) frame {
	b := make([]byte, 0, length)
	b = append(b, h.Address[:]...)
	b = append(b, 0x02, 0, 0, 0, 0, sender)
	b = append(b, 0x88, 0xb5) // an EtherType for local experiments (IEEE 802a)
	b = binary.BigEndian.AppendUint32(b, uint32(number))
	for i := len(b); i < length; i++ {
		b = append(b, byte(i*7+number*13)+sender)
	}
	if cuts == nil {
		cuts = []int{min(length, vswitch.HeadLen)}
	}
	return frame{number, b, cuts}
}

// lend returns f as a sender hands it to the switch, in memory of its own.
func (f frame) lend() *vswitch.Frame {
	rest := slices.Clone(f.bytes)
	lent := &vswitch.Frame{Len: len(rest)}
	lent.Head, rest = rest[:f.cuts[0]:f.cuts[0]], rest[f.cuts[0]:]
	for _, n := range f.cuts[1:] {
		lent.Body = append(lent.Body, rest[:n:n])
		rest = rest[n:]
	}
	if len(rest) > 0 {
		lent.Body = append(lent.Body, rest)
	}
	return lent
}

// poison overwrites what was lent, as a sender that uses its memory again does.
func poison(lent *vswitch.Frame) {
	fill := func(b []byte) {
		for i := range b {
			b[i] = 0xdb
		}
	}
	fill(lent.Head)
	for _, part := range lent.Body {
		fill(part)
	}
	clear(lent.Body)
	*lent = vswitch.Frame{}
}

// deliver lends frames to the port, checks that they come back as they were,
// and takes their memory away. It returns how many fitted.
func (h Harness) deliver(frames []frame) (int, error) {
	list := make([]*vswitch.Frame, len(frames))
	before := make([]vswitch.Frame, len(frames))
	for i, f := range frames {
		list[i] = f.lend()
		before[i] = *list[i]
		before[i].Body = slices.Clone(list[i].Body)
	}
	lent := slices.Clone(list)

	n := h.Port.Deliver(list)

	if n < 0 || n > len(frames) {
		return 0, fmt.Errorf("Deliver returned %d for %d frames", n, len(frames))
	}
	if !slices.Equal(list, lent) {
		return 0, fmt.Errorf("Deliver changed the list of frames")
	}
	for i, f := range frames {
		if !sameFrame(lent[i], &before[i]) || !bytes.Equal(lent[i].AppendTo(nil), f.bytes) {
			return 0, fmt.Errorf("Deliver changed frame %d", f.number)
		}
		poison(lent[i])
	}
	clear(list)
	return n, nil
}

// sameFrame reports whether a and b are made of the same memory.
func sameFrame(a, b *vswitch.Frame) bool {
	same := func(p, q []byte) bool {
		return len(p) == len(q) && (len(p) == 0 || &p[0] == &q[0])
	}
	return a.Len == b.Len && a.Offload == b.Offload && same(a.Head, b.Head) &&
		slices.EqualFunc(a.Body, b.Body, same)
}

// want checks that the receiver got frames, all of them and nothing else.
func want(got [][]byte, frames []frame) error {
	for i, f := range frames {
		switch {
		case i >= len(got):
			return fmt.Errorf("frame %d did not arrive, nor did %d after it", f.number, len(frames)-i-1)
		case !bytes.Equal(got[i], f.bytes):
			return fmt.Errorf("instead of frame %d, of %d bytes,\n%x\narrived %d bytes,\n%x",
				f.number, len(f.bytes), f.bytes, len(got[i]), got[i])
		}
	}
	if extra := len(got) - len(frames); extra > 0 {
		return fmt.Errorf("%d frames arrived that were not sent or did not fit", extra)
	}
	return nil
}

// pass delivers frames, at most Batch, to an empty port and checks that all
// arrive.
func (h Harness) pass(frames ...frame) error {
	n, err := h.deliver(frames)
	if err != nil {
		return err
	}
	if n != len(frames) {
		return fmt.Errorf("of %d frames an empty port took %d", len(frames), n)
	}
	return want(h.Take(), frames)
}

func checkEmpty(h Harness) error {
	for _, list := range [][]*vswitch.Frame{nil, {}} {
		if n := h.Port.Deliver(list); n != 0 {
			return fmt.Errorf("Deliver returned %d for no frames", n)
		}
	}
	if err := want(h.Take(), nil); err != nil {
		return err
	}
	return h.pass(h.frame(0, 0, minLen))
}

// checkContent sends frames of many lengths, cut in many ways.
func checkContent(h Harness) error {
	number := 0
	for _, length := range []int{minLen, 61, 64, 127, 128, 129, 255, 590, 1513, 1514, h.MaxLen} {
		if length > h.MaxLen {
			continue
		}
		for _, cuts := range [][]int{
			{length},
			{min(length, vswitch.HeadLen)},
			{vswitch.HeaderLen},
			{vswitch.HeaderLen, 1, 0, 2, 3},
			{minLen, 0, 0},
			{vswitch.HeaderLen + 1, length - vswitch.HeaderLen - 2},
		} {
			if err := h.pass(h.frame(0, number, length, cuts...)); err != nil {
				return fmt.Errorf("length %d cut at %d: %w", length, cuts, err)
			}
			number++
		}
	}
	return nil
}

// checkOrder sends batches of all sizes, sometimes two before the receiver looks.
func checkOrder(h Harness) error {
	random := rand.New(rand.NewPCG(2, 1))
	number := 0
	for range 200 {
		frames := make([]frame, 1+random.IntN(Batch))
		for i := range frames {
			frames[i] = h.frame(0, number, minLen+random.IntN(h.MaxLen-minLen+1))
			number++
		}
		split := random.IntN(len(frames))
		n, err := h.deliver(frames[:split])
		if err != nil {
			return err
		}
		m, err := h.deliver(frames[split:])
		if err != nil {
			return err
		}
		if n+m != len(frames) {
			return fmt.Errorf("of %d and %d frames an empty port took %d and %d", split, len(frames)-split, n, m)
		}
		if err := want(h.Take(), frames); err != nil {
			return err
		}
	}
	return nil
}

// checkFull sends more than the port can hold. What fitted must arrive, and
// once there is room again, so must what comes next.
func checkFull(h Harness) error {
	for range 2 {
		h.Stall()
		var taken []frame
		for n, full := 0, false; !full; {
			batch := make([]frame, Batch)
			for i := range batch {
				batch[i] = h.frame(0, n+i, minLen)
			}
			fitted, err := h.deliver(batch)
			if err != nil {
				return err
			}
			taken = append(taken, batch[:fitted]...)
			full = fitted < Batch
			if n += Batch; n >= tooMany {
				return fmt.Errorf("%d frames fit into the port while the receiver stands still", n)
			}
		}
		n, err := h.deliver([]frame{h.frame(0, 0, minLen)})
		if err != nil {
			return err
		}
		if n != 0 {
			return fmt.Errorf("a full port took %d frame", n)
		}
		if err := want(h.Take(), taken); err != nil {
			return fmt.Errorf("%d frames until full: %w", len(taken), err)
		}
	}
	return h.pass(h.frame(0, 0, minLen))
}

// checkClose closes the port under senders that do not know of it.
func checkClose(h Harness) error {
	const senders = 2
	var (
		began, ended sync.WaitGroup
		closed       atomic.Bool
		errs         [senders]error
	)
	began.Add(senders)
	for s := range senders {
		ended.Go(func() {
			batch := []frame{h.frame(byte(s), 0, minLen), h.frame(byte(s), 1, h.MaxLen)}
			for i := 0; !closed.Load(); i++ {
				_, err := h.deliver(batch)
				if i == 0 {
					began.Done()
				}
				if err != nil {
					errs[s] = err
					return
				}
			}
		})
	}
	began.Wait()
	h.Close()
	closed.Store(true)
	ended.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	n, err := h.deliver([]frame{h.frame(0, 0, minLen)})
	if err != nil {
		return err
	}
	if n != 0 {
		return fmt.Errorf("a closed port took %d frame", n)
	}
	return nil
}

// checkSenders delivers from several goroutines at once: what fitted of each
// sender's frames must arrive in that sender's order.
func checkSenders(h Harness) error {
	const senders, batches, size = 4, 50, 4
	var (
		wg   sync.WaitGroup
		sent [senders][]frame
		errs [senders]error
	)
	for s := range senders {
		wg.Go(func() {
			for b := range batches {
				batch := make([]frame, size)
				for i := range batch {
					number := b*size + i
					batch[i] = h.frame(byte(s), number, minLen+number%(h.MaxLen-minLen+1))
				}
				n, err := h.deliver(batch)
				if err != nil {
					errs[s] = err
					return
				}
				sent[s] = append(sent[s], batch[:n]...)
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	var got [senders][][]byte
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		for _, b := range h.Take() {
			if len(b) < minLen || b[11] >= senders {
				return fmt.Errorf("a frame arrived that nobody sent: %x", b)
			}
			got[b[11]] = append(got[b[11]], b)
		}
	}
	for s := range senders {
		if errs[s] != nil {
			return errs[s]
		}
		if err := want(got[s], sent[s]); err != nil {
			return fmt.Errorf("sender %d of %d: %w", s, senders, err)
		}
	}
	return nil
}

// checkAllocations counts allocations in Deliver, with room and without.
func checkAllocations(h Harness) error {
	list := make([]*vswitch.Frame, Batch/2)
	for i := range list {
		list[i] = h.frame(0, i, h.MaxLen).lend()
	}
	deliver := func() { h.Port.Deliver(list) }
	for range 20 {
		h.Stall()
		if n := testing.AllocsPerRun(1, deliver); n != 0 { // calls deliver twice: a Batch
			return fmt.Errorf("Deliver of %d frames with room for them allocates %v times", len(list), n)
		}
		h.Take()
	}
	h.Stall()
	for n := 0; n < tooMany && h.Port.Deliver(list) == len(list); n += len(list) {
		continue
	}
	if n := testing.AllocsPerRun(20, deliver); n != 0 {
		return fmt.Errorf("Deliver of %d frames without room for them allocates %v times", len(list), n)
	}
	return nil
}

package device

import "polder/vswitch"

// backlogFrames is the size of a backlog, which is what a 100 Mb/s port of a switch commonly has: 30 ms of frames at that rate.
const backlogFrames = 256

// backlog is the egress queue of an adapter's port: frames for a guest that has no descriptor free at the
// moment. A driver is slow compared with a sender that copies straight into its buffers, and without a
// queue a TCP sender's bursts overrun the 128 descriptors of Linux's ring, at a loss of one
// frame in five. An adapter that keeps up never uses it. Guarded by its owner's lock.
type backlog struct {
	slots       *[backlogFrames]backlogSlot // made when first needed
	head, count int                         // a ring
}

type backlogSlot struct {
	n    int
	data [maxTulipFrame]byte
}

// push copies f, of at most maxTulipFrame bytes, behind the frames that wait. It reports whether there was room.
func (b *backlog) push(f *vswitch.Frame) bool {
	if b.count == backlogFrames {
		return false
	}
	if b.slots == nil {
		b.slots = new([backlogFrames]backlogSlot)
	}
	s := &b.slots[(b.head+b.count)%backlogFrames]
	s.n = copy(s.data[:], f.Head)
	for _, p := range f.Body {
		s.n += copy(s.data[s.n:], p)
	}
	b.count++
	return true
}

// first returns the frame that has waited longest, nil if none waits. It is valid until pop.
func (b *backlog) first() []byte {
	if b.count == 0 {
		return nil
	}
	s := &b.slots[b.head]
	return s.data[:s.n]
}

// pop takes the first frame out.
func (b *backlog) pop() {
	b.head = (b.head + 1) % backlogFrames
	b.count--
}

// clear takes all frames out and returns how many there were.
func (b *backlog) clear() (n uint64) {
	n = uint64(b.count)
	b.head, b.count = 0, 0
	return n
}

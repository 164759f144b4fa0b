package pxe

import (
	"sync"

	"polder/pxe/internal/ipstack"
	"polder/vswitch"
)

const (
	// inboxSlots is how many received frames can wait. A guest in lock step has one under way; a full
	// window of TCP acknowledgements is some hundred.
	inboxSlots = 512

	// outBatch is how many frames are forwarded at a time.
	outBatch = 32

	// minFrame is the shortest Ethernet frame in bytes, without FCS; shorter ones are padded.
	minFrame = 60
)

// allRouters is where Router Solicitations go: ff02::2 by RFC 2464, section 7.
var allRouters = vswitch.MAC{0x33, 0x33, 0, 0, 0, 2}

// broadcast is the Ethernet address of all.
var broadcast = vswitch.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// inbox is the bounded queue between the senders on the switch and the one goroutine that handles
// their frames. Its memory is allocated once.
type inbox struct {
	own  vswitch.MAC
	wake chan struct{} // holds a token when the sleeping receiver has something to do

	mu       sync.Mutex
	slots    [inboxSlots]slot // a ring; count slots from head are full
	head     int
	count    int
	sleeping bool
	closed   bool
}

type slot struct {
	n    int
	data [ipstack.MaxFrame]byte
}

// deliver copies frames as [vswitch.Port] asks. Frames for others, which are flooded until the switch
// has learned, and those too long for the wire are taken and forgotten, as by a network card.
func (b *inbox) deliver(frames []*vswitch.Frame) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return 0
	}
	for i, f := range frames {
		dst := vswitch.MAC(f.Head[:6])
		if dst != b.own && dst != broadcast && dst != allRouters || f.Len > ipstack.MaxFrame {
			continue
		}
		if b.count == inboxSlots {
			b.signal()
			return i
		}
		s := &b.slots[(b.head+b.count)%inboxSlots]
		s.n = copy(s.data[:], f.Head)
		for _, part := range f.Body {
			s.n += copy(s.data[s.n:], part)
		}
		b.count++
	}
	b.signal()
	return len(frames)
}

// signal wakes the receiver if it sleeps and has a reason not to. It is called with mu held.
func (b *inbox) signal() {
	if b.sleeping && (b.count > 0 || b.closed) {
		b.sleeping = false
		b.wake <- struct{}{} // has room: there is one token for each sleep
	}
}

// receive calls handle for each frame, in order, until the inbox is closed.
func (b *inbox) receive(handle func(frame []byte)) {
	b.mu.Lock()
	for !b.closed {
		if b.count == 0 {
			b.sleeping = true
			b.mu.Unlock()
			<-b.wake
			b.mu.Lock()
			continue
		}
		// Senders write behind count only, so the oldest slot can be used without the lock.
		s := &b.slots[b.head]
		b.mu.Unlock()
		handle(s.data[:s.n])
		b.mu.Lock()
		b.head = (b.head + 1) % inboxSlots
		b.count--
	}
	b.mu.Unlock()
}

func (b *inbox) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.signal()
}

// outbox forwards what the stack sends. The stack serialises its calls.
type outbox struct {
	in     *vswitch.Ingress
	frames [outBatch]vswitch.Frame
	padded [outBatch][minFrame]byte
}

// send implements ipstack's Config.Output.
func (o *outbox) send(packets [][]byte) {
	for len(packets) > 0 {
		n := min(len(packets), outBatch)
		for i, p := range packets[:n] {
			if len(p) < minFrame {
				pad := o.padded[i][:]
				clear(pad[copy(pad, p):])
				p = pad
			}
			// The memory is ours alone, so all of it may be the head.
			o.frames[i] = vswitch.Frame{Head: p, Len: len(p)}
		}
		o.in.Forward(o.frames[:n])
		packets = packets[n:]
	}
}

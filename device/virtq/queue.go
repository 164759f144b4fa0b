package virtq

import (
	"errors"
	"fmt"
)

// MaxNum is the largest size of a queue (virtio 2.7 and 2.8).
const MaxNum = 1 << 15

// ErrMalformed is the error of a ring that a correct driver cannot produce. The queue is then broken for good.
var ErrMalformed = errors.New("malformed ring")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

// Config says where a queue is and what was negotiated.
type Config struct {
	Num uint16 // entries: a power of two up to MaxNum; for a packed ring any number up to MaxNum

	// Guest-physical addresses of the three areas: descriptor table, available ring and used ring
	// of a split ring; descriptor ring, driver and device event suppression of a packed one.
	Desc, Driver, Device uint64

	Packed   bool // VIRTIO_F_RING_PACKED
	EventIdx bool // VIRTIO_F_EVENT_IDX
	InOrder  bool // VIRTIO_F_IN_ORDER: Done is then called in the order of Take
	Indirect bool // VIRTIO_F_INDIRECT_DESC

	// Sends says that the driver sends with this queue: all its buffers are to be read. Then the entries of a packed ring's
	// indirect tables may say otherwise. DPDK's driver marks them all as to be written when it makes its
	// tables, and later forgets to change the first.
	Sends bool

	// Base is where to go on, in the form of vhost-user's SET_VRING_BASE. For a split ring it is the next
	// available index. For a packed ring it is the position of the next available descriptor in
	// bits 0 to 14 with its wrap counter in bit 15, so 0x8000 in a new ring, and the same
	// for used descriptors in bits 16 to 31. If those are 0, used is where available is: DPDK's front end
	// leaves them out.
	Base uint32
}

// cursor is a position in a ring. In a split ring it is a free-running index, in a
// packed ring the position of a descriptor and the wrap counter there (virtio 2.8.1).
type cursor struct {
	index uint16
	wrap  bool
}

// Queue is the device's half of one virtqueue. It is not safe for concurrent use.
type Queue struct {
	cfg Config
	mem Memory
	err error // what broke the queue

	next cursor // of what the driver makes available
	used cursor // of what the device gives back; ahead of what the driver sees until Publish

	split  splitRing
	packed packedRing

	readable, writable pieces

	writes bool    // there was a buffer with a part to write
	frame  Chain   // of the last Fill
	staged []entry // of the last Fill

	signalled bool // Publish decided on a doorbell before, so it knows where it was then

	log   func(gpa uint64, n int)
	dirty []span // since the last Publish
}

// span is guest memory that the device wrote, or was given to write.
type span struct {
	gpa uint64
	n   int
}

// entry is a buffer to be marked used.
type entry struct {
	id      uint16 // split: head of the chain; packed: buffer id
	descs   uint16 // packed: how many descriptors of the ring it occupied
	written uint32 // bytes
}

// New returns the queue that c describes in mem. It reads the rings' positions but takes and
// writes nothing. An error says what is wrong with c.
func New(mem Memory, c Config) (*Queue, error) {
	q := &Queue{
		cfg:      c,
		mem:      mem,
		readable: pieces{mem: mem},
		writable: pieces{mem: mem, write: true},
	}
	switch {
	case c.Num == 0 || c.Num > MaxNum:
		return nil, fmt.Errorf("queue of %d entries: must be 1 to %d", c.Num, MaxNum)
	case !c.Packed && c.Num&(c.Num-1) != 0:
		return nil, fmt.Errorf("split queue of %d entries: must be a power of two", c.Num)
	}
	if err := q.place(); err != nil {
		return nil, err
	}
	start := q.startSplit
	if c.Packed {
		start = q.startPacked
	}
	if err := start(); err != nil {
		return nil, err
	}
	return q, nil
}

// Remap finds the areas again, at possibly other guest-physical addresses, after the memory map changed. Positions
// stay. Chains that were taken and not yet marked used may still be given to Done, but
// their memory must not be used. After an error the queue must not be used.
func (q *Queue) Remap(desc, driver, device uint64) error {
	q.cfg.Desc, q.cfg.Driver, q.cfg.Device = desc, driver, device
	q.readable.forget()
	q.writable.forget()
	return q.place()
}

// place finds the areas in memory. Sizes and alignments: virtio 2.7 and 2.8.10.1.
func (q *Queue) place() error {
	n := int(q.cfg.Num)
	desc := area{"descriptor table", q.cfg.Desc, 16 * n, 16, q.cfg.Packed}
	var driver, device area
	if q.cfg.Packed {
		driver = area{"driver event suppression", q.cfg.Driver, 4, 4, false}
		device = area{"device event suppression", q.cfg.Device, 4, 4, true}
	} else {
		driver = area{"available ring", q.cfg.Driver, 4 + 2*n, 2, false}
		device = area{"used ring", q.cfg.Device, 4 + 8*n, 4, true}
		if q.cfg.EventIdx { // a field at the end that is not there otherwise
			driver.size += 2
			device.size += 2
		}
	}
	var mem [3][]byte
	for i, a := range []area{desc, driver, device} {
		var err error
		if mem[i], err = a.window(q.mem); err != nil {
			return err
		}
	}
	for _, p := range [][2]area{{desc, driver}, {desc, device}, {driver, device}} {
		if p[0].overlaps(p[1]) {
			return fmt.Errorf("%s at %#x overlaps %s at %#x", p[0].name, p[0].gpa, p[1].name, p[1].gpa)
		}
	}
	if q.cfg.Packed {
		q.packed.place(mem[0], mem[1], mem[2])
	} else {
		q.split.place(n, q.cfg.EventIdx, mem[0], mem[1], mem[2])
	}
	return nil
}

// fail breaks the queue.
func (q *Queue) fail(err error) error {
	q.err = err
	return err
}

// Err returns what broke the queue, or nil.
func (q *Queue) Err() error { return q.err }

// Take fills chains, from the first on, with what the driver made available, in its order, and returns how many.
// It overwrites the chains and reuses the room in them; with chains that lived through a few
// calls it allocates nothing. Their slices stay valid, with content that the guest may change,
// until the owner lets the memory map change. Each is to be given to Done.
//
// It may take fewer than there are, but not none: no more than a ring has descriptors, and none after those that have as
// many parts together as one may have. So a driver of long chains does not keep its neighbours waiting for longer.
//
// An error is [ErrMalformed] and final; the n chains before it are good.
func (q *Queue) Take(chains []Chain) (n int, err error) {
	if q.err != nil {
		return 0, q.err
	}
	if q.cfg.Packed {
		n, err = q.takePacked(chains)
	} else {
		n, err = q.takeSplit(chains)
	}
	q.err = err
	return n, err
}

// walk appends the next chain that is available to c and moves on. It returns false if there is none.
func (q *Queue) walk(c *Chain) (bool, error) {
	if q.cfg.Packed {
		return q.walkPacked(c)
	}
	if ready, err := q.availableSplit(1); ready == 0 {
		return false, err
	}
	return true, q.walkSplit(c)
}

// Fill reserves buffers for n bytes, a device's header and a frame, and notes them as used, to be seen after the next
// Publish. With merge, that is any number of buffers, of which all but the last are filled (virtio 2.8.9
// and 5.1.6.4); without, one. Their number is what belongs into the header's num_buffers.
// The parts together have n bytes. They are the queue's and valid until its next call, for the owner to write before
// Publish. If there is not enough room, buffers is 0 and nothing was reserved.
//
// An error is [ErrMalformed] and final.
func (q *Queue) Fill(n int, merge bool) (parts [][]byte, buffers int, err error) {
	if q.err != nil {
		return nil, 0, q.err
	}
	c, start := &q.frame, q.next
	c.reset()
	q.staged = q.staged[:0]
	room := 0
	for room < n {
		// A buffer may be as small as the driver likes, the work to be done for a frame may not be large.
		if len(q.staged) > 0 && !merge || len(c.In) >= maxParts {
			q.next = start
			return nil, 0, nil
		}
		before := len(c.In)
		ok, err := q.walk(c)
		if err != nil {
			return nil, 0, q.fail(err)
		}
		if !ok {
			q.next = start
			return nil, 0, nil
		}
		if len(c.Out) != 0 { // virtio 2.7.5.1: a device must not write to a device-readable buffer
			return nil, 0, q.fail(malformed("buffer %d to receive into has %d bytes that the device may not write", c.id, len(c.Out[0])))
		}
		got := 0
		for _, p := range c.In[before:] {
			got += len(p)
		}
		q.staged = append(q.staged, entry{c.id, c.descs, uint32(min(got, n-room))})
		room += got
	}
	c.trim(room - n)
	if q.log != nil {
		q.dirty = append(q.dirty, c.dirty...)
	}
	for _, e := range q.staged {
		q.put(e, false)
	}
	return c.In, len(q.staged), nil
}

// FillEach is Fill for several frames at once, of n[i] bytes each and at least one. It reserves one buffer for each, from the
// first on, as long as the driver's next buffer is one descriptor with room for all of the frame, as nearly
// all are, and sets bufs[i] to its first n[i] bytes. It returns for how many it did; Fill has room for the next, or
// says why not. bufs is as long as n.
//
// All of them are reserved before the owner writes to the first, so that its writes, to memory that another
// processor read last, do not have to queue behind the accesses to the ring.
func (q *Queue) FillEach(n []int, bufs [][]byte) int {
	switch {
	case q.err != nil || q.log != nil:
		return 0
	case q.cfg.Packed:
		return q.fillPacked(n, bufs)
	}
	return q.fillSplit(n, bufs)
}

// Done notes that the device is through with c, into whose writable part it wrote the given
// number of bytes. The driver sees that after the next Publish. Order is free
// unless Config.InOrder.
func (q *Queue) Done(c *Chain, written uint32) {
	if q.log != nil && written > 0 {
		q.dirty = append(q.dirty, c.dirty...)
	}
	// A driver that relies on order takes a buffer which it sees skipped as used completely, so
	// buffers that the device only reads need no entry of their own (virtio 2.7.9 and 2.8.8).
	q.put(entry{c.id, c.descs, written}, q.cfg.InOrder && len(c.In) == 0)
}

// DoneAll is Done for several chains of one Take, in their order, to none of which anything was written.
func (q *Queue) DoneAll(chains []Chain) {
	switch {
	case len(chains) == 0:
	case q.writes:
		for i := range chains {
			q.Done(&chains[i], 0)
		}
	case q.cfg.Packed:
		q.readPacked(chains)
	default:
		q.readSplit(chains)
	}
}

// put notes e as used; it may take the place of the entry before if both are inner.
func (q *Queue) put(e entry, inner bool) {
	if q.cfg.Packed {
		q.putPacked(e, inner)
	} else {
		q.putSplit(e, inner)
	}
}

// Base returns where the queue is, for vhost-user's GET_VRING_BASE and in the form of Config.Base. It is exact when
// all chains taken were given to Done.
func (q *Queue) Base() uint32 {
	if q.cfg.Packed {
		return uint32(q.next.packed()) | uint32(q.used.packed())<<16
	}
	return uint32(q.next.index)
}

// packed returns c as 15 bits of position and, in bit 15, the wrap counter.
func (c cursor) packed() uint16 {
	if c.wrap {
		return c.index | 1<<15
	}
	return c.index
}

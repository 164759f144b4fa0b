package virtqtest

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"unsafe"

	"polder/device/virtq"
)

// Flags of a descriptor, for [Driver.SetDesc].
const (
	Next     = 1 << 0
	Write    = 1 << 1
	Indirect = 1 << 2
	avail    = 1 << 7
	used     = 1 << 15
)

// tableSize is how many entries the indirect tables of a Driver have room for.
const tableSize = 64

// Options are the size of a queue and what was negotiated.
type Options struct {
	Num                                 int
	Packed, EventIdx, InOrder, Indirect bool
}

func (o Options) String() string {
	s := fmt.Sprintf("split,num=%d", o.Num)
	if o.Packed {
		s = fmt.Sprintf("packed,num=%d", o.Num)
	}
	for _, f := range []struct {
		on   bool
		name string
	}{{o.EventIdx, "event"}, {o.InOrder, "inorder"}, {o.Indirect, "indirect"}} {
		if f.on {
			s += "," + f.name
		}
	}
	return s
}

// Buffer is one descriptor's worth of memory.
type Buffer struct {
	Addr  uint64
	Len   uint32
	Write bool // the device writes
}

// Used is a buffer that came back.
type Used struct {
	Token   int    // as given to Add
	Written uint32 // bytes, as the device said, or 0 for one that was skipped because of IN_ORDER
}

// Driver is the driver's half of one queue. It is not safe for concurrent use; the device
// may be elsewhere.
type Driver struct {
	ram *RAM
	o   Options
	cfg virtq.Config

	desc, driver, device []byte // the areas

	slots []slot // by head or buffer id
	fifo  []int  // ids in the order in which they were made available; a ring of Num
	in    uint   // entries ever put into fifo
	out   uint   // entries ever taken from fifo
	left  int    // buffers of a batch still to be reported
	table uint64 // indirect tables, one for each id

	free  []int // split: descriptors; packed: ids
	room  int   // free descriptors
	next  int   // in order and packed: position of the next descriptor
	wrap  bool  // packed: its wrap counter
	index uint16
	shown uint16 // split: index as the device sees it
	seen  uint16 // split: used index of the next entry to look at
	ahead uint16 // split: used index as last loaded

	start, startFlags, staged int // packed: first descriptor since Publish, its flags, and how many
	startWrap                 bool
	usedAt                    int // packed: where the next used descriptor will be
	usedWrap                  bool
}

// slot is what the driver remembers of a buffer that the device has.
type slot struct {
	token int
	descs []int // split: its descriptors
	n     int   // packed: how many
}

// NewDriver returns a driver with an empty queue in ram.
func NewDriver(ram *RAM, o Options) *Driver {
	d := &Driver{ram: ram, o: o, room: o.Num, wrap: true, usedWrap: true}
	d.cfg = virtq.Config{
		Num: uint16(o.Num), Packed: o.Packed, EventIdx: o.EventIdx, InOrder: o.InOrder, Indirect: o.Indirect,
	}
	driver, device := 8+2*o.Num, 8+8*o.Num
	if o.Packed {
		driver, device = 4, 4
		d.cfg.Base = 0x8000_8000
	}
	d.cfg.Desc = ram.Alloc(16*o.Num, 64)
	d.cfg.Driver = ram.Alloc(driver, 64)
	d.cfg.Device = ram.Alloc(device, 64)
	d.desc, d.driver, d.device = ram.Bytes(d.cfg.Desc, 16*o.Num), ram.Bytes(d.cfg.Driver, driver), ram.Bytes(d.cfg.Device, device)
	if o.Indirect {
		d.table = ram.Alloc(o.Num*tableSize*16, 64)
	}
	d.slots, d.fifo = make([]slot, o.Num), make([]int, o.Num)
	for i := o.Num - 1; i >= 0; i-- {
		d.free = append(d.free, i)
		d.slots[i].descs = make([]int, 0, o.Num)
	}
	return d
}

// Config describes the queue for a device that starts from its beginning.
func (d *Driver) Config() virtq.Config { return d.cfg }

// Options returns what NewDriver was given.
func (d *Driver) Options() Options { return d.o }

// Room returns how many descriptors are free.
func (d *Driver) Room() int { return d.room }

// Add makes a buffer available, for the device to see after the next Publish. With indirect, which was
// negotiated, its descriptors go to a table if there are no more than 64. It reports
// whether there was room. The memory belongs to the device until Reap returns the token.
func (d *Driver) Add(bufs []Buffer, token int, indirect bool) bool {
	indirect = indirect && len(bufs) <= tableSize
	need := len(bufs)
	if indirect {
		need = 1
	}
	if len(bufs) == 0 || need > d.room {
		return false
	}
	d.room -= need
	var id int
	if d.o.Packed {
		id = d.addPacked(bufs, need, indirect)
	} else {
		id = d.addSplit(bufs, indirect)
	}
	d.slots[id].token, d.slots[id].n = token, need
	d.fifo[d.in%uint(d.o.Num)] = id
	d.in++
	return true
}

// take returns a free descriptor, or id.
func (d *Driver) take() int {
	if d.o.InOrder && !d.o.Packed { // in ring order
		i := d.next
		d.next = (d.next + 1) % d.o.Num
		return i
	}
	i := d.free[len(d.free)-1]
	d.free = d.free[:len(d.free)-1]
	return i
}

func (d *Driver) addSplit(bufs []Buffer, indirect bool) int {
	head := d.take()
	s := &d.slots[head]
	s.descs = append(s.descs[:0], head)
	if indirect {
		gpa := d.fillTable(head, bufs)
		d.SetDesc(head, gpa, uint32(16*len(bufs)), Indirect, 0)
	} else {
		at := head
		for i, b := range bufs {
			flags, next := b.flags(), 0
			if i < len(bufs)-1 {
				next = d.take()
				s.descs = append(s.descs, next)
				flags |= Next
			}
			d.SetDesc(at, b.Addr, b.Len, flags, uint16(next))
			at = next
		}
	}
	d.SetAvailable(d.index, uint16(head))
	d.index++
	return head
}

func (b Buffer) flags() uint16 {
	if b.Write {
		return Write
	}
	return 0
}

// fillTable writes the indirect table of id and returns its address.
func (d *Driver) fillTable(id int, bufs []Buffer) uint64 {
	gpa := d.table + uint64(id*tableSize*16)
	mem := d.ram.Bytes(gpa, 16*len(bufs))
	for i, b := range bufs {
		flags, next := b.flags(), 0
		if !d.o.Packed && i < len(bufs)-1 {
			flags, next = flags|Next, i+1
		}
		PutDesc(mem[16*i:], d.o.Packed, b.Addr, b.Len, flags, uint16(next))
	}
	return gpa
}

func (d *Driver) addPacked(bufs []Buffer, need int, indirect bool) int {
	id := d.take()
	gpa := uint64(0)
	if indirect {
		gpa = d.fillTable(id, bufs)
	}
	for i := range need {
		b := Buffer{gpa, uint32(16 * len(bufs)), false}
		flags := uint16(Indirect)
		if !indirect {
			b, flags = bufs[i], bufs[i].flags()
		}
		if i < need-1 {
			flags |= Next
		}
		flags |= d.availableFlags()
		at := d.next
		if d.staged == 0 { // its flags are written by Publish, after all else
			d.start, d.startWrap, d.startFlags = at, d.wrap, int(flags)
			old := binary.LittleEndian.Uint16(d.desc[16*at+14:])
			d.SetDesc(at, b.Addr, b.Len, old, uint16(id))
		} else {
			d.SetDesc(at, b.Addr, b.Len, flags, uint16(id))
		}
		d.staged++
		if d.next++; d.next == d.o.Num {
			d.next, d.wrap = 0, !d.wrap
		}
	}
	return id
}

// availableFlags returns the bits that make a descriptor available at the next position of a packed ring.
func (d *Driver) availableFlags() uint16 {
	if d.wrap {
		return avail
	}
	return used
}

// Publish shows the device all buffers added, and reports whether it wants a kick for them.
func (d *Driver) Publish() (kick bool) {
	if d.o.Packed {
		if d.staged == 0 {
			return false
		}
		w := word(d.desc[16*d.start+12:])
		atomic.StoreUint32(w, *w&0xffff|uint32(d.startFlags)<<16)
		n := d.staged
		d.staged = 0
		wish := atomic.LoadUint32(word(d.device))
		switch wish >> 16 & 3 {
		case 0:
			return true
		case 2:
			off := int(wish&0x7fff) - d.start
			if (wish&0x8000 != 0) != d.startWrap {
				off += d.o.Num
			}
			return 0 <= off && off < n
		}
		return false
	}
	old := d.shown
	if old == d.index {
		return false
	}
	d.shown = d.index
	store16(d.driver[2:], d.index)
	if d.o.EventIdx {
		event := load16(d.device[4+8*d.o.Num:])
		return d.index-event-1 < d.index-old
	}
	return load16(d.device)&1 == 0
}

// Reap returns the next buffer that the device used, if there is one. It panics if the device breaks a rule.
func (d *Driver) Reap() (Used, bool) {
	u := Used{}
	if d.left == 0 {
		id, written, ok := d.look()
		if !ok {
			return u, false
		}
		if d.in == d.out {
			panic(fmt.Sprintf("virtqtest: device used buffer %d but has none", id))
		}
		u.Written = written
		if !d.o.InOrder {
			d.out++
			return d.release(id, u), true
		}
		// All up to the one that is named; bytes written are meant for that only, so they come with a batch of one.
		for d.left = 1; d.fifo[(d.out+uint(d.left)-1)%uint(d.o.Num)] != id; d.left++ {
			if d.out+uint(d.left) == d.in {
				panic(fmt.Sprintf("virtqtest: device used buffer %d, which it does not have", id))
			}
		}
		if d.left > 1 {
			u.Written = 0
		}
	}
	id := d.fifo[d.out%uint(d.o.Num)]
	d.out++
	d.left--
	return d.release(id, u), true
}

// look returns what the next used entry says.
func (d *Driver) look() (id int, written uint32, ok bool) {
	if d.o.Packed {
		b := d.desc[16*d.usedAt:]
		w := atomic.LoadUint32(word(b[12:]))
		flags := uint16(w >> 16)
		if (flags&avail != 0) != d.usedWrap || (flags&used != 0) != d.usedWrap || d.in == d.out {
			return 0, 0, false
		}
		if flags&Write != 0 {
			written = binary.LittleEndian.Uint32(b[8:])
		}
		id = int(w & 0xffff)
	} else {
		if d.ahead == d.seen {
			if d.ahead = load16(d.device[2:]); d.ahead == d.seen {
				return 0, 0, false
			}
		}
		e := d.device[4+8*(int(d.seen)%d.o.Num):]
		id, written = int(binary.LittleEndian.Uint32(e)), binary.LittleEndian.Uint32(e[4:])
	}
	if id >= d.o.Num {
		panic(fmt.Sprintf("virtqtest: device used buffer %d of %d", id, d.o.Num))
	}
	return id, written, true
}

// release frees a buffer and moves on.
func (d *Driver) release(id int, u Used) Used {
	s := &d.slots[id]
	if s.n == 0 {
		panic(fmt.Sprintf("virtqtest: device used buffer %d, which it does not have", id))
	}
	u.Token = s.token
	d.room += s.n
	if d.o.Packed {
		d.free = append(d.free, id)
		if d.usedAt += s.n; d.usedAt >= d.o.Num {
			d.usedAt, d.usedWrap = d.usedAt-d.o.Num, !d.usedWrap
		}
	} else {
		d.seen++
		if !d.o.InOrder {
			d.free = append(d.free, s.descs...)
		}
	}
	s.n = 0
	return u
}

// Arm asks to be called for the next used buffer, and reports whether there is one already: then there may be no call.
func (d *Driver) Arm() (pending bool) {
	switch {
	case d.o.Packed && d.o.EventIdx:
		w := uint32(2<<16 | d.usedAt)
		if d.usedWrap {
			w |= 1 << 15
		}
		atomic.StoreUint32(word(d.driver), w)
	case d.o.Packed:
		atomic.StoreUint32(word(d.driver), 0)
	case d.o.EventIdx:
		store16(d.driver[4+2*d.o.Num:], d.seen)
	default:
		store16(d.driver, 0)
	}
	_, _, pending = d.look()
	return pending || d.left > 0
}

// Disarm says that calls are not needed.
func (d *Driver) Disarm() {
	switch {
	case d.o.Packed:
		atomic.StoreUint32(word(d.driver), 1<<16)
	case d.o.EventIdx: // used_event stays behind
	default:
		store16(d.driver, 1)
	}
}

// SetDesc writes descriptor i: last is next in a split ring, the buffer id in a packed one.
func (d *Driver) SetDesc(i int, addr uint64, n uint32, flags, last uint16) {
	PutDesc(d.desc[16*i:], d.o.Packed, addr, n, flags, last)
}

// PutDesc writes a descriptor to memory: last is next in a split ring, the buffer id in a packed one.
func PutDesc(b []byte, packed bool, addr uint64, n uint32, flags, last uint16) {
	rest := uint64(n) | uint64(flags)<<32 | uint64(last)<<48
	if packed {
		rest = uint64(n) | uint64(last)<<32 | uint64(flags)<<48
	}
	binary.LittleEndian.PutUint64(b, addr)
	binary.LittleEndian.PutUint64(b[8:], rest)
}

// SetAvailable writes the entry with the given index of a split ring's available ring.
func (d *Driver) SetAvailable(index, head uint16) {
	binary.LittleEndian.PutUint16(d.driver[4+2*(int(index)%d.o.Num):], head)
}

// SetIndex writes the available index of a split ring.
func (d *Driver) SetIndex(index uint16) { store16(d.driver[2:], index) }

// Jump moves an empty queue on as if n descriptors had been made available and used already, one in a buffer, and
// returns the configuration for a device that goes on there.
func (d *Driver) Jump(n int) virtq.Config {
	c := d.cfg
	if d.o.Packed {
		c.Base = uint32(n % d.o.Num)
		d.next, d.wrap = n%d.o.Num, n/d.o.Num%2 == 0
		d.usedAt, d.usedWrap = d.next, d.wrap
		if d.wrap {
			c.Base |= 0x8000
		}
		c.Base |= c.Base << 16
		for i := range d.o.Num { // used in this round, or in the one before
			flags := uint16(avail | used)
			if (i < d.next) != d.wrap {
				flags = 0
			}
			d.SetDesc(i, 0, 0, flags, 0)
		}
		return c
	}
	d.index, d.shown, d.seen, d.ahead = uint16(n), uint16(n), uint16(n), uint16(n)
	store16(d.driver[2:], d.index)
	store16(d.device[2:], d.index)
	if d.o.InOrder {
		d.next = n % d.o.Num
	}
	c.Base = uint32(uint16(n))
	return c
}

// word returns the 32 bits at b, which are aligned, for atomic operations.
func word(b []byte) *uint32 {
	return (*uint32)(unsafe.Pointer(&b[:4][0]))
}

// half returns the aligned word that holds the 16 bits at b, and how far up they are in it.
func half(b []byte) (*uint32, uint) {
	p := unsafe.Pointer(&b[0])
	odd := uintptr(p) & 2
	return (*uint32)(unsafe.Add(p, -int(odd))), uint(odd) * 8
}

func load16(b []byte) uint16 {
	w, shift := half(b)
	return uint16(atomic.LoadUint32(w) >> shift)
}

// store16 stores v where nobody else writes the other half of the word.
func store16(b []byte, v uint16) {
	w, shift := half(b)
	atomic.StoreUint32(w, atomic.LoadUint32(w)&^(0xffff<<shift)|uint32(v)<<shift)
}

package device

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"polder/device/guestmem"
	"polder/device/vhostuser"
	"polder/device/virtq"
	"polder/vswitch"
)

// MaxPairs is how many pairs of a receive and a transmit queue an adapter can have: as many as
// a message of vhost-user can number.
const MaxPairs = 128

// VirtioNetConfig is what a synthetic adapter needs to know about itself. It alone decides which features
// the guest is offered: they do not depend on who the neighbours are, so they stay when a guest migrates.
type VirtioNetConfig struct {
	Name  string // of the port, for the log
	Pairs int    // of a receive and a transmit queue, 1 to MaxPairs; 0 stands for 1

	// NoPacked offers split rings only, to drivers whose packed ones cannot be trusted.
	NoPacked bool

	// NoOffload offers no partial checksums and no segmentation, in neither direction.
	NoOffload bool

	// MTU is that of the network, in bytes, for the hypervisor to tell the guest; 0: the guest's MTU is its own affair.
	MTU int

	Workers *Workers // look after the transmit rings; shared by the process's adapters, and closed after them
	Log     *slog.Logger
}

// VirtioNet is a synthetic adapter: a virtio network device whose rings a hypervisor hands over by
// vhost-user, on a port of the switch. It implements vswitch.OffloadPort and vhostuser.Backend.
type VirtioNet struct {
	log    *slog.Logger
	config VirtioNetConfig

	announceMu sync.Mutex       // held while announce is used
	announce   *vswitch.Ingress // of frames that are not the guest's own; nil: the adapter is on no switch

	rx []*rxRing // by pair
	tx []*txRing

	// active is the receive rings that run and are enabled: what Deliver chooses from.
	active  atomic.Pointer[[]*rxRing]
	accepts atomic.Uint32 // a vswitch.OffloadSet
	state   atomic.Int32  // detached, attached or faulted
	hangUp  atomic.Pointer[func(error)]

	attachments, faults atomic.Uint64

	// Of the attachment. They change only while no ring runs, and so while nobody uses them.
	mem      guestmem.Map
	features uint64
	dirty    dirtyLog // changes with the lock of each ring held, in turn
}

// VirtioNetStats counts what the adapter itself drops; the switch counts the rest.
type VirtioNetStats struct {
	Attachments uint64 // connections of a hypervisor so far
	Attached    bool   // one is there now
	NoBuffer    uint64 // frames for which the guest had no buffer
	Stopped     uint64 // frames that met no ring, as while the guest's driver does not run, or that came from a disabled one
	Faults      uint64 // attachments ended because of a malformed ring, or memory that went away
}

var (
	_ vswitch.OffloadPort = (*VirtioNet)(nil)
	_ vhostuser.Backend   = (*VirtioNet)(nil)
)

// NewVirtioNet returns an adapter with nothing attached. It is on no switch until Connect puts it
// on one.
func NewVirtioNet(c VirtioNetConfig) (*VirtioNet, error) {
	if c.Pairs == 0 {
		c.Pairs = 1
	}
	if c.Pairs < 0 || c.Pairs > MaxPairs {
		return nil, fmt.Errorf("%d queue pairs: from 1 to %d", c.Pairs, MaxPairs)
	}
	if c.MTU != 0 && (c.MTU < minMTU || c.MTU > maxMTU) {
		return nil, fmt.Errorf("MTU %d: from %d to %d", c.MTU, minMTU, maxMTU)
	}
	if c.Workers == nil {
		return nil, errors.New("an adapter needs workers")
	}
	v := &VirtioNet{log: c.Log.With("port", c.Name), config: c}
	v.active.Store(new([]*rxRing))
	for pair := range c.Pairs {
		v.rx = append(v.rx, &rxRing{ring: ring{dev: v, index: 2 * pair}})
		v.tx = append(v.tx, &txRing{ring: ring{dev: v, index: 2*pair + 1}})
	}
	return v, nil
}

// Connect tells the adapter its place on a switch, where its guest's frames go; nil for none. It may be
// called again at any time, with a hypervisor attached too: when it returns, no frame goes to the
// place before any more.
func (v *VirtioNet) Connect(m *vswitch.Member) {
	ingress := func() *vswitch.Ingress {
		if m == nil {
			return nil
		}
		return m.NewIngress()
	}
	v.announceMu.Lock()
	v.announce = ingress()
	v.announceMu.Unlock()
	for _, t := range v.tx {
		t.mu.Lock()
		t.in = ingress()
		t.mu.Unlock()
	}
}

// Close ends the adapter after its attachment has ended.
func (v *VirtioNet) Close() error { return v.mem.Close() }

// Stats returns the adapter's counters.
func (v *VirtioNet) Stats() VirtioNetStats {
	s := VirtioNetStats{
		Attachments: v.attachments.Load(),
		Attached:    v.state.Load() != detached,
		Faults:      v.faults.Load(),
	}
	for i := range v.rx {
		s.NoBuffer += v.rx[i].noBuffer.Load()
		s.Stopped += v.rx[i].stopped.Load() + v.tx[i].stopped.Load()
	}
	return s
}

// fail ends the attachment, whose guest or hypervisor breaks what it shares.
func (v *VirtioNet) fail(cause error) {
	if v.state.CompareAndSwap(attached, faulted) {
		v.faults.Add(1)
		if hangUp := v.hangUp.Load(); hangUp != nil {
			(*hangUp)(cause)
		}
	}
}

// Accepts implements vswitch.OffloadPort: what the guest's driver has acknowledged.
func (v *VirtioNet) Accepts() vswitch.OffloadSet { return vswitch.OffloadSet(v.accepts.Load()) }

// Deliver implements vswitch.Port. With several receive rings, each takes the flows that fall to it, and loses
// what it has no buffers for; they do not wait for each other.
func (v *VirtioNet) Deliver(frames []*vswitch.Frame) (n int) {
	active := *v.active.Load()
	if len(active) == 0 {
		v.rx[0].stopped.Add(uint64(len(frames)))
		return 0
	}
	for i, r := range active {
		n += r.deliver(frames, uint32(i), uint32(len(active)))
	}
	return n
}

// ring is what receive and transmit rings have in common.
type ring struct {
	dev   *VirtioNet
	index int // as vhost-user counts

	mu      sync.Mutex // guards what follows; of a receive ring, never held while the switch is called
	q       *virtq.Queue
	enabled bool
	call    call
	stopped atomic.Uint64 // VirtioNetStats.Stopped

	headerLen int  // bytes before each frame
	merge     bool // a frame may fill several buffers
}

// fail ends the attachment because of the ring.
func (r *ring) fail(cause error) { r.dev.fail(fmt.Errorf("ring %d: %w", r.index, cause)) }

// catch is deferred by whatever touches guest memory, as Tulip.catch is, and for the same reasons.
func (r *ring) catch(before bool) {
	debug.SetPanicOnFault(before)
	p := recover()
	if p == nil {
		return
	}
	addr, ok := guestmem.FaultAddress(p)
	if !ok || !r.dev.mem.Owns(addr) && !r.dev.dirty.owns(addr) {
		panic(p)
	}
	r.fail(guestmem.ErrFault)
}

// publish shows the driver what was used, and calls it if it wants. Called with mu held.
func (r *ring) publish() {
	if r.q.Publish() {
		if err := r.call.signal(); err != nil {
			r.fail(fmt.Errorf("call: %w", err))
		}
	}
}

// rxRing is a receive ring from the guest's point of view.
type rxRing struct {
	ring
	noBuffer atomic.Uint64

	// What is reserved for frames and not completely written: buffers for a frame each, or, in filling, several for one.
	sizes    [rxBatch]int // of the frames, with their headers
	buffers  [rxBatch][]byte
	reserved int // how many of them
	filling  [][]byte

	picked []*vswitch.Frame // those of a batch that fall to the ring, if there are several
}

// rxBatch is for how many frames buffers are reserved before the first is written.
const rxBatch = 64

// maxScattered bounds the parts to which the frames of such a batch are scattered: there are enough for the largest in buffers of
// 1 KiB. Smaller ones are the driver's own choice, and are not to cost others the time of those who send to it.
const maxScattered = 4096

// deliver copies to the ring those of frames whose flows fall to share number share of shares.
func (r *rxRing) deliver(frames []*vswitch.Frame, share, shares uint32) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.catch(debug.SetPanicOnFault(true))
	if shares > 1 {
		defer r.unpick()
		for _, f := range frames {
			if flowHash(f.Head)%shares == share {
				r.picked = append(r.picked, f)
			}
		}
		frames = r.picked
	}
	if r.q == nil || !r.enabled { // since Deliver looked
		r.lose(frames)
		return 0
	}
	defer r.finish()
	for len(frames) > 0 {
		batch := frames[:min(len(frames), rxBatch)]
		for i, f := range batch {
			r.sizes[i] = r.headerLen + f.Len
		}
		for at, scattered := 0, 0; at < len(batch); {
			r.reserved = r.q.FillEach(r.sizes[at:len(batch)], r.buffers[:])
			for i := 0; i < r.reserved; i++ {
				if r.headerLen == maxHeader {
					i += writeSmall(r.buffers[i:r.reserved], batch[at+i:])
				}
				if i < r.reserved {
					r.write(r.buffers[i], batch[at+i])
				}
			}
			at, n, r.reserved = at+r.reserved, n+r.reserved, 0
			if at == len(batch) {
				break
			}
			parts := 0
			if scattered < maxScattered {
				parts = r.scatter(batch[at], r.sizes[at])
			}
			if scattered += parts; parts == 0 {
				r.noBuffer.Add(uint64(len(frames) - at)) // with those behind it: nothing overtakes
				r.lose(frames[at:])
				return n
			}
			at, n = at+1, n+1
		}
		frames = frames[len(batch):]
	}
	return n
}

// lose tells the switch that frames, the last of those picked, were not taken: other rings may take those behind them.
func (r *rxRing) lose(frames []*vswitch.Frame) {
	if len(r.picked) > 0 {
		lose(frames)
	}
}

// lose tells the switch that frames were not taken.
func lose(frames []*vswitch.Frame) {
	for _, f := range frames {
		f.Lost = true
	}
}

// unpick forgets frames, which are only lent.
func (r *rxRing) unpick() {
	clear(r.picked)
	r.picked = r.picked[:0]
}

// write copies a frame and its header to one buffer.
func (r *rxRing) write(b []byte, f *vswitch.Frame) {
	if r.headerLen == maxHeader && !f.Offload.NeedsChecksum {
		putPlainHeader(b)
	} else {
		header := makeHeader(&f.Offload, 1)
		copy(b, header[:r.headerLen])
	}
	b = b[r.headerLen:]
	b = b[copy(b, f.Head):]
	for _, p := range f.Body {
		b = b[copy(b, p):]
	}
}

// writeSmall is write for frames that lie in their Head and have all their checksums, to buffers each as long as its frame with
// a header of maxHeader. It ends at the first frame that is none of these, and returns how many there were.
//
// It calls nothing, so that the loop has hardly a store but those to the buffers. They wait, in order and 64 of them on this
// generation of processors, for lines that another processor has: with what calls put on the stack between them,
// a line took 70 ns that now takes 30.
func writeSmall(buffers [][]byte, frames []*vswitch.Frame) int {
	for i, b := range buffers {
		f := frames[i]
		head := f.Head
		if len(f.Body) != 0 || f.Offload.NeedsChecksum || len(b) != maxHeader+len(head) {
			return i
		}
		putPlainHeader(b)
		b = b[maxHeader:]
		for len(head) >= 16 && len(b) >= 16 {
			*(*[16]byte)(b) = *(*[16]byte)(head)
			head, b = head[16:], b[16:]
		}
		if len(head) >= 8 && len(b) >= 8 {
			*(*[8]byte)(b) = *(*[8]byte)(head)
			head, b = head[8:], b[8:]
		}
		for j := 0; j < len(head) && j < len(b); j++ {
			b[j] = head[j]
		}
	}
	return len(buffers)
}

// putPlainHeader writes the header of a frame that is complete and in one buffer, as nearly all are, to b. A buffer that was used before
// has this header already as a rule. Then it is only read: its cache line stays with both processors. And it is
// written from registers: taken from memory, into which its fields were written one by one, it would have to wait
// until all stores before those are done.
func putPlainHeader(b []byte) {
	const buffers = 1 << 16
	if binary.LittleEndian.Uint64(b) != 0 || binary.LittleEndian.Uint32(b[8:]) != buffers {
		binary.LittleEndian.PutUint64(b, 0)
		binary.LittleEndian.PutUint32(b[8:], buffers)
	}
}

// scatter copies a frame and its header, size bytes in all, to whatever the driver offers. It returns the number of
// parts, or 0 if they do not suffice.
func (r *rxRing) scatter(f *vswitch.Frame, size int) int {
	parts, buffers, err := r.q.Fill(size, r.merge)
	if err != nil {
		r.fail(err)
	}
	if buffers == 0 {
		return 0
	}
	r.filling = parts
	header := makeHeader(&f.Offload, buffers)
	s := scatter{rest: parts}
	s.write(header[:r.headerLen])
	s.write(f.Head)
	for _, p := range f.Body {
		s.write(p)
	}
	r.filling = nil
	return len(parts)
}

// finish shows the driver what came. If the memory of a sender went away in the middle of a frame, the
// buffers reserved for it and its like are the driver's all the same; then the frames get addresses that are
// nobody's.
func (r *rxRing) finish() {
	var nobody [vswitch.HeaderLen]byte
	reserved, filling := r.reserved, r.filling
	r.reserved, r.filling = 0, nil // first, for the ring's own memory may have gone as well
	for _, b := range r.buffers[:reserved] {
		r.write(b, &vswitch.Frame{Head: nobody[:]})
	}
	if filling != nil { // the header is complete
		s := scatter{rest: filling}
		s.skip(r.headerLen)
		s.write(nobody[:])
	}
	r.publish()
}

// scatter writes to memory in pieces, one after the other.
type scatter struct {
	at   []byte   // what is left of the piece under way
	rest [][]byte // the pieces after it
}

// write writes p, as far as there is room.
func (s *scatter) write(p []byte) {
	for len(p) > 0 && s.more() {
		n := copy(s.at, p)
		s.at, p = s.at[n:], p[n:]
	}
}

// skip leaves n bytes as they are.
func (s *scatter) skip(n int) {
	for n > 0 && s.more() {
		k := min(n, len(s.at))
		s.at, n = s.at[k:], n-k
	}
}

// more makes sure that there is room in s.at, and reports whether there is any.
func (s *scatter) more() bool {
	for len(s.at) == 0 {
		if len(s.rest) == 0 {
			return false
		}
		s.at, s.rest = s.rest[0], s.rest[1:]
	}
	return true
}

// The header before each frame (virtio 5.1.6): struct virtio_net_hdr, all fields little-endian. A driver of a legacy
// device has one without num_buffers, unless buffers may be merged.
const (
	maxHeader    = 12
	legacyHeader = 10

	hdrNeedsChecksum = 1 << 0 // in flags
	hdrECN           = 1 << 7 // in gso_type
)

// makeHeader returns a header of nothing but what the switch has made of the sender's.
func makeHeader(o *vswitch.Offload, buffers int) (h [maxHeader]byte) {
	if o.NeedsChecksum {
		h[0] = hdrNeedsChecksum
		h[1] = byte(o.GSO)
		if o.ECN {
			h[1] |= hdrECN
		}
		binary.LittleEndian.PutUint16(h[2:], o.HeadersLen)
		binary.LittleEndian.PutUint16(h[4:], o.GSOSize)
		binary.LittleEndian.PutUint16(h[6:], o.ChecksumStart)
		binary.LittleEndian.PutUint16(h[8:], o.ChecksumOffset)
	}
	binary.LittleEndian.PutUint16(h[10:], uint16(buffers))
	return h
}

// flowHash returns the same number for all frames of a flow: from IP addresses and, unless the packet is
// a fragment or has options, TCP or UDP ports. Frames of anything else have 0.
func flowHash(head []byte) uint32 {
	const ipv4, ipv6 = 0x0800, 0x86dd
	h := uint64(0)
	mix := func(from, to int) {
		for ; from < to; from += 4 {
			h = (h ^ uint64(binary.BigEndian.Uint32(head[from:]))) * 0x9e3779b97f4a7c15
		}
	}
	ports := func(proto byte) bool { return proto == 6 || proto == 17 }
	if len(head) < 38 {
		return 0
	}
	switch ip := vswitch.HeaderLen; binary.BigEndian.Uint16(head[12:]) {
	case ipv4:
		mix(ip+12, ip+20)
		const offsetAndMore = 0x3fff
		if head[ip] == 0x45 && ports(head[ip+9]) && binary.BigEndian.Uint16(head[ip+6:])&offsetAndMore == 0 {
			mix(ip+20, ip+24)
		}
	case ipv6:
		if len(head) >= 58 {
			mix(ip+8, ip+40)
			if ports(head[ip+6]) {
				mix(ip+40, ip+44)
			}
		}
	}
	return uint32(h >> 32)
}

package vswitch

import "encoding/binary"

// finisher does for one port what the frames on a list leave undone. What it
// makes of a frame begins with a Head of the finisher's own and goes on in the
// sender's memory. It hands over a few at a time, so what it holds is small,
// however much the frames become.
type finisher struct {
	list []*Frame // to be delivered next: made, and of the sender's frames those that need nothing

	// What is made: the first made of frames, each with the head of the same index.
	made   int
	frames [finisherLen]Frame
	heads  [finisherLen][HeadLen]byte
	parts  [][]byte // the bodies of frames, one behind the other
}

// finisherLen is how many frames are made between two deliveries: about as many
// as 64 KiB make that were cut for an MTU of 1500.
const finisherLen = 48

// deliver hands frames to m, in order, those finished that it does not accept.
//
// When the port is full, what is left is not even made, and counts as lost.
func (s *finisher) deliver(m *Member, frames []*Frame) {
	takes := m.accepts()
	var cut, completed uint64
	defer func() { // also after a panic, since some have arrived
		if cut != 0 {
			m.segmented.Add(cut)
			m.sw.segmented.Add(cut)
		}
		if completed != 0 {
			m.completed.Add(completed)
			m.sw.completed.Add(completed)
		}
	}()
	full := false
	for _, f := range frames {
		switch {
		case f.Offload.needs()&^takes == 0:
			if full {
				m.lose(f, 1)
				continue
			}
			s.list = append(s.list, f)
		case f.Offload.GSO == GSONone:
			if full = full || !s.room(m); full {
				m.lose(f, 1)
				continue
			}
			s.complete(f)
			completed++
		default:
			if !full {
				cut++
			}
			c := newCutter(f)
			for ; c.left() > 0; c.next++ {
				if full = full || !s.room(m); full {
					m.lose(f, c.left())
					break
				}
				s.cut(&c)
			}
		}
	}
	s.flush(m)
}

// room makes room for one more frame, if need be by a delivery. It reports
// false if the port is full after that.
func (s *finisher) room(m *Member) bool { return s.made < finisherLen || s.flush(m) }

// flush delivers what there is, and reports whether there may be room for more.
func (s *finisher) flush(m *Member) bool {
	if len(s.list) == 0 {
		return true
	}
	more := m.deliver(s.list)
	s.reset()
	return more
}

// reset forgets what was made.
func (s *finisher) reset() {
	clear(s.list)
	clear(s.frames[:s.made])
	clear(s.parts)
	s.list, s.made, s.parts = s.list[:0], 0, s.parts[:0]
}

// add makes a frame of a copy of the headers hdr and the next n bytes of r, and
// puts it on the list. There must be room.
func (s *finisher) add(hdr []byte, r *reader, n int) *Frame {
	head := &s.heads[s.made]
	f := &s.frames[s.made]
	s.made++
	f.Len = len(hdr) + n
	f.Head = head[:min(f.Len, HeadLen)]
	r.copy(f.Head[copy(f.Head, hdr):])
	first := len(s.parts)
	s.parts = r.lend(s.parts, f.Len-len(f.Head)) // other bodies stay where they were if this moves them
	f.Body = s.parts[first:len(s.parts):len(s.parts)]
	s.list = append(s.list, f)
	return f
}

// complete makes a frame that is f with its checksum.
func (s *finisher) complete(f *Frame) {
	h, _ := parseHeaders(f.Head, f.Len) // as it was when the frame came in
	r := reader{rest: f.Head[h.payload:], body: f.Body}
	g := s.add(f.Head[:h.payload], &r, f.Len-h.payload)
	n := h.end - h.l4
	if h.proto == protoUDP {
		n = h.udpLen(g.Head)
	}
	h.fillChecksum(g, n)
}

// cut makes a frame that is the next piece: its headers are those of the whole,
// but for what differs from piece to piece.
func (s *finisher) cut(c *cutter) {
	h := &c.headers
	n := min(c.size, c.payload-c.next*c.size)
	f := s.add(c.from.Head[:h.payload], &c.reader, n)

	ip := f.Head[h.ip:]
	if h.v6 {
		binary.BigEndian.PutUint16(ip[4:], uint16(h.payload-h.ip-ipv6HeaderLen+n))
	} else {
		binary.BigEndian.PutUint16(ip[2:], uint16(h.payload-h.ip+n))
		// Consecutive, though nothing needs them in a packet that is not to be
		// fragmented (RFC 6864, 4.1).
		binary.BigEndian.PutUint16(ip[4:], binary.BigEndian.Uint16(ip[4:])+uint16(c.next))
		binary.BigEndian.PutUint16(ip[ipv4ChecksumAt:], 0)
		var sum checksum
		sum.add(f.Head[h.ip:h.l4])
		binary.BigEndian.PutUint16(ip[ipv4ChecksumAt:], sum.value())
	}
	l4 := f.Head[h.l4:]
	if h.proto == protoUDP {
		binary.BigEndian.PutUint16(l4[4:], uint16(udpHeaderLen+n))
	} else {
		binary.BigEndian.PutUint32(l4[4:], binary.BigEndian.Uint32(l4[4:])+uint32(c.next*c.size))
		if c.next > 0 {
			l4[tcpFlagsAt] &^= tcpCWR
		}
		if c.left() > 1 {
			l4[tcpFlagsAt] &^= tcpFIN | tcpPSH
		}
	}
	h.fillChecksum(f, h.payload-h.l4+n)
}

// cutter is where a frame has been cut.
type cutter struct {
	headers
	from    *Frame
	payload int // bytes, of the whole
	size    int // bytes of it in each piece but the last
	pieces  int // one even if there is no payload
	next    int
	reader  reader // at the next piece's payload
}

func newCutter(f *Frame) cutter {
	h, _ := parseHeaders(f.Head, f.Len) // as it was when the frame came in
	size := int(f.Offload.GSOSize)
	payload := h.end - h.payload
	return cutter{
		headers: h,
		from:    f,
		payload: payload,
		size:    size,
		pieces:  max(1, (payload+size-1)/size),
		reader:  reader{rest: f.Head[h.payload:], body: f.Body},
	}
}

// left returns the number of pieces still to be cut.
func (c *cutter) left() int { return c.pieces - c.next }

// fillChecksum fills in the TCP or UDP checksum, over a pseudo-header and the n
// bytes from l4 on.
func (h *headers) fillChecksum(f *Frame, n int) {
	binary.BigEndian.PutUint16(f.Head[h.l4+h.checksumAt():], h.checksumOf(f, n))
}

// checksumOf returns what fillChecksum fills in.
func (h *headers) checksumOf(f *Frame, n int) uint16 {
	var sum checksum
	if h.v6 { // RFC 8200, 8.1
		sum.add(f.Head[h.ip+8 : h.ip+40])
	} else { // RFC 9293, 3.1
		sum.add(f.Head[h.ip+12 : h.ip+20])
	}
	sum.addWord(uint16(h.proto))
	sum.addWord(uint16(n))
	sum.addWord(^binary.BigEndian.Uint16(f.Head[h.l4+h.checksumAt():])) // takes off what is in its place
	r := reader{rest: f.Head[h.l4:], body: f.Body}
	for n > 0 {
		b := r.next(n)
		sum.add(b)
		n -= len(b)
	}
	v := sum.value()
	if v == 0 && h.proto == protoUDP {
		v = 0xffff // zero says that there is none (RFC 768)
	}
	return v
}

// reader goes through the bytes of a frame.
type reader struct {
	rest []byte   // of the part it is in
	body [][]byte // the parts after that
}

// next returns at least one byte and at most n of those that come next, where
// they lie. There must be one.
func (r *reader) next(n int) []byte {
	for len(r.rest) == 0 {
		r.rest, r.body = r.body[0], r.body[1:]
	}
	b := r.rest[:min(n, len(r.rest))]
	r.rest = r.rest[len(b):]
	return b
}

// copy fills b with the bytes that come next.
func (r *reader) copy(b []byte) {
	for len(b) > 0 {
		b = b[copy(b, r.next(len(b))):]
	}
}

// lend appends the next n bytes to parts, where they lie, and returns the result.
func (r *reader) lend(parts [][]byte, n int) [][]byte {
	for n > 0 {
		b := r.next(n)
		parts = append(parts, b)
		n -= len(b)
	}
	return parts
}

package vswitch

import (
	"encoding/binary"
	"time"
)

// OffloadSet is a set of things a port can do without in the frames it takes,
// since whoever is behind it does them or has no use for them.
type OffloadSet uint8

// What a port may accept. Every kind of segmentation also takes
// OffloadChecksum: the pieces get their checksums only when they are cut.
const (
	OffloadChecksum OffloadSet = 1 << iota // a TCP or UDP checksum that is not filled in
	OffloadTSO4                            // TCP over IPv4 to be cut into segments
	OffloadTSO6                            // TCP over IPv6 to be cut into segments
	OffloadECN                             // of TCP to be cut, also what has CWR set
	OffloadUSO                             // UDP to be cut into datagrams
)

// OffloadPort is a port that takes frames with work left undone. For any other
// port, and for what an OffloadPort does not accept, the switch does the work.
type OffloadPort interface {
	Port

	// Accepts returns what Offload of a frame may ask for. The switch asks
	// before each list that has a frame with an Offload, so the answer may
	// change at any time, as when a guest's driver starts; a list that is on
	// its way then still goes by the old answer. Accepts is called from any
	// goroutine, several at once. It must not block or call the switch: an
	// atomic load is what it should be.
	Accepts() OffloadSet
}

// needs returns what a port must accept to get a frame with o as it is.
func (o *Offload) needs() OffloadSet {
	var s OffloadSet
	if o.NeedsChecksum {
		s |= OffloadChecksum
	}
	switch o.GSO {
	case GSOTCPv4:
		s |= OffloadTSO4
	case GSOTCPv6:
		s |= OffloadTSO6
	case GSOUDP:
		s |= OffloadUSO
	}
	if o.ECN {
		s |= OffloadECN
	}
	return s
}

// The limit on what one frame can become. A frame of 64 KiB cut at one byte
// would be 65536 frames. Pieces of tinyPiece bytes and up make at most 1024 of
// a frame. Of smaller ones, for which a sender has hardly a reason, there are
// no more than Linux cuts from one UDP message (UDP_MAX_SEGMENTS).
const (
	tinyPiece     = 64
	maxTinyPieces = 128
)

// headers is where the headers of a frame lie, in bytes from its start.
type headers struct {
	ip      int // IP header
	l4      int // TCP or UDP header
	payload int // what follows that
	end     int // of the IP packet; what follows is padding
	v6      bool
	proto   byte // protoTCP or protoUDP
}

// Protocol numbers, of IPv4's protocol and IPv6's next header field.
const (
	protoHopByHop    = 0
	protoTCP         = 6
	protoUDP         = 17
	protoRouting     = 43
	protoDestination = 60
)

const (
	typeIPv4 = 0x0800
	typeIPv6 = 0x86dd
	typeVLAN = 0x8100 // IEEE 802.1Q customer tag
	typeQinQ = 0x88a8 // IEEE 802.1Q service tag
)

const (
	ipv4HeaderLen = 20
	ipv6HeaderLen = 40
	tcpHeaderLen  = 20
	udpHeaderLen  = 8
)

// Where the checksums are, in bytes from the beginning of their headers.
const (
	ipv4ChecksumAt = 10
	tcpChecksumAt  = 16
	udpChecksumAt  = 6
)

// parseHeaders finds the headers in head, the beginning of a frame of length
// bytes. It fails unless they are all there, within HeadLen bytes, and lead to a
// TCP or UDP header of a packet that is not a fragment. Up to two VLAN tags
// are skipped, and IPv6 extension headers, except those that change what the
// checksum covers or means: a routing header with a way still to go, since the
// checksum is then over an address within it (RFC 8200, 8.1), a fragment header
// and an authentication header.
func parseHeaders(head []byte, length int) (h headers, ok bool) {
	head = head[:min(len(head), HeadLen)]
	at := HeaderLen - 2
	for range 3 {
		if len(head) < at+2 {
			return h, false
		}
		switch binary.BigEndian.Uint16(head[at:]) {
		case typeVLAN, typeQinQ:
			at += 4
			continue
		case typeIPv4:
			h.ip = at + 2
			ok = h.parseIPv4(head) && h.parseL4(head, length)
			return h, ok
		case typeIPv6:
			h.ip = at + 2
			h.v6 = true
			ok = h.parseIPv6(head) && h.parseL4(head, length)
			return h, ok
		}
		return h, false
	}
	return h, false
}

// parseIPv4 finds l4, end and proto (RFC 791, 3.1).
func (h *headers) parseIPv4(head []byte) bool {
	if len(head) < h.ip+ipv4HeaderLen {
		return false
	}
	b := head[h.ip:]
	const moreFragmentsAndOffset = 0x3fff
	if b[0]>>4 != 4 || binary.BigEndian.Uint16(b[6:])&moreFragmentsAndOffset != 0 {
		return false
	}
	n := int(b[0]&0xf) * 4
	h.l4 = h.ip + n
	h.end = h.ip + int(binary.BigEndian.Uint16(b[2:]))
	h.proto = b[9]
	return n >= ipv4HeaderLen
}

// parseIPv6 finds l4, end and proto (RFC 8200, 3 and 4).
func (h *headers) parseIPv6(head []byte) bool {
	if len(head) < h.ip+ipv6HeaderLen || head[h.ip]>>4 != 6 {
		return false
	}
	h.l4 = h.ip + ipv6HeaderLen
	h.end = h.l4 + int(binary.BigEndian.Uint16(head[h.ip+4:]))
	h.proto = head[h.ip+6]
	for h.proto == protoHopByHop || h.proto == protoRouting || h.proto == protoDestination {
		if len(head) < h.l4+8 {
			return false
		}
		b := head[h.l4:]
		if segmentsLeft := b[3]; h.proto == protoRouting && segmentsLeft != 0 {
			return false
		}
		h.proto = b[0]
		h.l4 += 8 + 8*int(b[1])
	}
	return true
}

// parseL4 finds payload and checks that all that was found is there.
func (h *headers) parseL4(head []byte, length int) bool {
	switch h.proto {
	case protoTCP:
		if len(head) < h.l4+tcpHeaderLen {
			return false
		}
		n := int(head[h.l4+12]>>4) * 4
		if n < tcpHeaderLen {
			return false
		}
		h.payload = h.l4 + n
	case protoUDP:
		h.payload = h.l4 + udpHeaderLen
	default:
		return false
	}
	return h.payload <= len(head) && h.payload <= h.end && h.end <= length
}

// checksumAt returns where the TCP or UDP checksum is, in bytes from l4.
func (h *headers) checksumAt() int {
	if h.proto == protoTCP {
		return tcpChecksumAt
	}
	return udpChecksumAt
}

// gso returns the only kind of segmentation that goes with the headers.
func (h *headers) gso() GSOKind {
	switch {
	case h.proto == protoUDP:
		return GSOUDP
	case h.v6:
		return GSOTCPv6
	}
	return GSOTCPv4
}

// Flags of TCP, in the byte at tcpFlagsAt of its header (RFC 9293, 3.1).
const (
	tcpFlagsAt = 13
	tcpFIN     = 1 << 0
	tcpPSH     = 1 << 3
	tcpCWR     = 1 << 7
)

// checked returns the Offload of a frame made anew from its headers, or false
// if what the sender asks for is not what they call for.
func (f *Frame) checked() (o Offload, ok bool) {
	in := &f.Offload
	if !in.NeedsChecksum {
		return Offload{}, in.GSO == GSONone // a piece cannot do without its checksum
	}
	h, ok := parseHeaders(f.Head, f.Len)
	if !ok || int(in.ChecksumStart) != h.l4 || int(in.ChecksumOffset) != h.checksumAt() {
		return Offload{}, false
	}
	o = Offload{NeedsChecksum: true, ChecksumStart: in.ChecksumStart, ChecksumOffset: in.ChecksumOffset}
	if in.GSO == GSONone {
		// UDP has a length of its own, and that is what its checksum covers.
		return o, h.proto != protoUDP || h.udpLen(f.Head) >= udpHeaderLen && h.udpLen(f.Head) <= h.end-h.l4
	}
	size := int(in.GSOSize)
	if in.GSO != h.gso() || size == 0 {
		return Offload{}, false
	}
	payload := h.end - h.payload
	if size < tinyPiece && payload > size*maxTinyPieces {
		return Offload{}, false
	}
	if payload <= size && h.proto == protoTCP {
		return o, true // one segment: nothing to cut, only the checksum
	}
	o.GSO = in.GSO
	o.GSOSize = in.GSOSize
	o.HeadersLen = uint16(h.payload)
	o.ECN = h.proto == protoTCP && f.Head[h.l4+tcpFlagsAt]&tcpCWR != 0
	return o, true
}

// udpLen returns the length in the UDP header, which head must have.
func (h *headers) udpLen(head []byte) int {
	return int(binary.BigEndian.Uint16(head[h.l4+4:]))
}

// anyOffload reports whether one of frames has an Offload. It is a loop of its
// own because sort, with so much as a branch for it, takes 5 ns a frame longer;
// this takes about one.
func anyOffload(frames []Frame) bool {
	for i := range frames {
		if o := &frames[i].Offload; o.NeedsChecksum || o.GSO != GSONone {
			return true
		}
	}
	return false
}

// checkOffloads returns a copy of frames with checked Offloads, less those
// whose Offload is not to be believed. The bytes stay the sender's.
func (in *Ingress) checkOffloads(frames []Frame) []Frame {
	in.checked = append(in.checked, frames...)
	kept := in.checked[:0]
	for _, f := range in.checked {
		if f.Offload != (Offload{}) {
			if _, ok := f.check(); ok { // otherwise sort counts it
				if f.Offload, ok = f.checked(); !ok {
					in.rx.add(&f)
					in.drop(DropBadOffload)
					if taps := in.from.taps.Load(); taps != nil {
						observe(*taps, In, &f, DropBadOffload, time.Now())
					}
					continue
				}
				in.unfinished = in.unfinished || f.Offload != Offload{}
			}
		}
		kept = append(kept, f)
	}
	return kept
}

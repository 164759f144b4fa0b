package vswitch

// Lengths of a frame in bytes, all without the frame check sequence, which no
// port passes on.
const (
	HeaderLen = 14  // destination, source, type: the shortest frame the switch forwards
	HeadLen   = 128 // how much of a frame a sender copies to Frame.Head, if it has as much

	// MaxFrameLen is the longest frame the switch forwards: the largest IP
	// packet behind an Ethernet header with two VLAN tags.
	MaxFrameLen = HeaderLen + 2*4 + 65535
)

// Frame is one Ethernet frame lent to the switch for the length of one call.
//
// Its bytes are those of Head and then of each slice of Body, from the
// destination address to the last byte before the frame check sequence. They
// belong to the sender, and nobody downstream writes to them or keeps them.
type Frame struct {
	// Head is the beginning of the frame, in memory that only the sender's own
	// code can write: at least [HeaderLen] bytes, and [HeadLen] if the frame has
	// as many. All that is judged by content is judged on Head. A sender that
	// owns all of a frame's memory may put the whole frame here.
	Head []byte

	// Body is the rest, where it happens to lie. It may be memory that a guest
	// changes at the same time, so nobody parses it.
	Body [][]byte

	// Len is the number of bytes in Head and Body together.
	Len int

	// Offload is the work the sender left undone. It is zero for an ordinary
	// frame, which is complete as it lies there. The switch believes none of it
	// and gives ports one of its own making; see [Offload].
	Offload Offload

	// Lost is how a port says which frames it did not take, if they are not the
	// last: see [Port]. It is false when Deliver is called.
	Lost bool
}

// Offload says what is missing in a frame that its sender left for the network
// adapter to finish, in the terms of struct virtio_net_hdr (virtio 1.2, 5.1.6).
//
// It is about TCP or UDP in an IP packet that is not a fragment, with all its
// headers in Head. A frame whose Offload does not agree with its headers is
// dropped, so a port can rely on what it gets. What its port does not accept
// (see [OffloadPort]) the switch does before it delivers.
type Offload struct {
	// NeedsChecksum says that the TCP or UDP checksum is to be filled in.
	// Whatever is in its place, a sum of the pseudo-header by custom, is ignored.
	// If false, GSO must be GSONone, and nothing else here means anything.
	NeedsChecksum bool

	// ECN says that TCP is to be cut and has CWR set, which only the first
	// segment keeps (RFC 3168, 6.1.2). The switch sets it; what a sender says
	// does not matter.
	ECN bool

	// GSO is what to cut the frame into; GSONone: nothing.
	GSO GSOKind

	ChecksumStart  uint16 // first byte that the checksum covers, counted from the frame's first
	ChecksumOffset uint16 // where the checksum goes, in bytes after ChecksumStart
	GSOSize        uint16 // bytes of payload in each piece but the last, which has the rest
	HeadersLen     uint16 // bytes before the payload of what is to be cut; set by the switch, as ECN is
}

// GSOKind names the protocol at which an oversized frame is cut into pieces.
// The values are those of virtio_net_hdr.gso_type without its ECN bit.
type GSOKind uint8

// The kinds of segmentation.
const (
	GSONone  GSOKind = 0
	GSOTCPv4 GSOKind = 1
	GSOTCPv6 GSOKind = 4
	GSOUDP   GSOKind = 5 // each piece a datagram of its own
)

// AppendTo appends the bytes of the frame to b and returns the result.
func (f *Frame) AppendTo(b []byte) []byte {
	b = append(b, f.Head...)
	for _, part := range f.Body {
		b = append(b, part...)
	}
	return b
}

// check says whether the switch can handle the frame at all, and if not, why.
func (f *Frame) check() (DropReason, bool) {
	have := len(f.Head)
	for _, part := range f.Body {
		have += len(part)
	}
	switch {
	case f.Len != have:
		return DropMalformed, false
	case f.Len < HeaderLen:
		return DropRunt, false
	case f.Len > MaxFrameLen:
		return DropOversize, false
	case len(f.Head) < HeaderLen:
		return DropMalformed, false
	}
	return 0, true
}

package vswitch

import (
	"fmt"
	"sync/atomic"
)

// DropReason says why the switch did not pass on a frame.
type DropReason uint8

// Reasons for a drop. All but the last are counted at the port the frame came
// from; DropReceiverFull is counted at the port it was meant for.
const (
	DropRunt         DropReason = iota // shorter than an Ethernet header
	DropOversize                       // longer than MaxFrameLen
	DropMalformed                      // Len is not the length, or Head is short of the header
	DropBadSource                      // the source is a group address or all zeros
	DropReserved                       // to 01:80:C2:00:00:00 to 0F, which bridges do not forward
	DropHairpin                        // the destination is behind the port the frame came from
	DropNoPort                         // a flood, and the switch has no other port
	DropBadOffload                     // Offload does not agree with the headers, or asks for too much
	DropReceiverFull                   // the receiving port had no room
	numDropReasons
)

var dropNames = [numDropReasons]string{
	DropRunt:         "runt",
	DropOversize:     "oversize",
	DropMalformed:    "malformed",
	DropBadSource:    "bad-source",
	DropReserved:     "reserved-multicast",
	DropHairpin:      "hairpin",
	DropNoPort:       "no-port",
	DropBadOffload:   "bad-offload",
	DropReceiverFull: "receiver-full",
}

// String returns the reason's name as operators see it, like "receiver-full".
func (r DropReason) String() string {
	if r < numDropReasons {
		return dropNames[r]
	}
	return fmt.Sprintf("DropReason(%d)", uint8(r))
}

// DropCounts counts dropped frames, indexed by [DropReason].
type DropCounts [numDropReasons]uint64

// Total returns the number of frames dropped for whatever reason.
func (d *DropCounts) Total() uint64 {
	var n uint64
	for _, c := range d {
		n += c
	}
	return n
}

// PortStats counts what one port has sent and received since it joined, as the
// switch sees it: Rx came from the port, Tx went to it. Bytes are without the
// frame check sequence.
//
// Every frame handed to Forward is in RxFrames or, when it was too broken to
// have a length worth counting, only in Drops as a runt, oversize or malformed.
// A frame that the switch cuts for the port is in TxFrames and TxBytes as the
// pieces it became, and so are pieces for which there was no room in Drops.
type PortStats struct {
	RxFrames    uint64
	RxBytes     uint64
	RxMulticast uint64 // those of RxFrames to a group address, broadcast included
	TxFrames    uint64
	TxBytes     uint64
	TxMulticast uint64
	Drops       DropCounts

	GSOSegmented       uint64 // frames to the port that were cut in software, since it does not accept them whole
	ChecksumsCompleted uint64 // frames to the port, not cut, whose checksum was filled in in software

	MACs     int    // addresses now known to be behind the port
	MACMoves uint64 // addresses that were behind another port and then showed up here
}

// Stats describes a switch as a whole.
type Stats struct {
	Ports     int    // members
	MACs      int    // addresses in the forwarding database
	MACMoves  uint64 // addresses that changed ports
	Evictions uint64 // addresses forgotten before their time, to make room
	Refusals  uint64 // times an address was not learned for want of room

	GSOSegmented       uint64 // as in PortStats, all ports together, with those that have left
	ChecksumsCompleted uint64
}

// cacheLine keeps what different goroutines write apart, in bytes.
const cacheLine = 64

// tally counts frames in one direction. An Ingress sums up a batch in one of
// its own and adds it to the member's counters once.
type tally struct {
	frames, bytes, multicast uint64
}

func (t *tally) add(f *Frame) {
	t.frames++
	t.bytes += uint64(f.Len)
	t.multicast += uint64(f.Head[0] & 1)
}

// join adds what another tally counted.
func (t *tally) join(o tally) {
	t.frames += o.frames
	t.bytes += o.bytes
	t.multicast += o.multicast
}

// counters is a tally that several goroutines add to.
type counters struct {
	frames, bytes, multicast atomic.Uint64
}

func (c *counters) add(t tally) {
	c.frames.Add(t.frames)
	c.bytes.Add(t.bytes)
	if t.multicast != 0 {
		c.multicast.Add(t.multicast)
	}
}

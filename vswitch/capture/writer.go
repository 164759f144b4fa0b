package capture

import (
	"bufio"
	"encoding/binary"
	"io"
	"math"
	"strconv"
	"time"

	"polder/vswitch"
)

// Block types (draft-ietf-opsawg-pcapng, 4).
const (
	blockSection    = 0x0a0d0d0a
	blockInterface  = 1
	blockStatistics = 5
	blockPacket     = 6
)

// Options (draft-ietf-opsawg-pcapng, 3.5, 4.1, 4.2, 4.3 and 4.6).
const (
	optEnd             = 0
	optComment         = 1
	sectionApplication = 4
	interfaceName      = 2
	interfaceDescr     = 3
	interfaceTSResol   = 9
	packetFlags        = 2
	packetDropCount    = 4
	statisticsStart    = 2
	statisticsEnd      = 3
	statisticsReceived = 4
	statisticsDropped  = 5
)

// Values of packetFlags.
const (
	flagInbound   = 1
	flagOutbound  = 2
	flagUnicast   = 1 << 2
	flagMulticast = 2 << 2
	flagBroadcast = 3 << 2
)

const linkTypeEthernet = 1

// Writer writes one section of a pcapng file. It is not for use by several
// goroutines at once.
type Writer struct {
	w          *bufio.Writer
	snapLen    uint32
	block      []byte // being made
	interfaces map[string]uint32
	started    []time.Time // index interface
	err        error       // the first there was
}

// NewWriter begins a section that says which application wrote it and that
// packets are cut after snapLen bytes; zero: they are not. Nothing is sure to
// have reached w before Flush.
//
// Every method returns the first error of w there was.
func NewWriter(w io.Writer, application string, snapLen int) *Writer {
	cw := &Writer{w: bufio.NewWriterSize(w, 1<<16), snapLen: uint32(snapLen), interfaces: map[string]uint32{}}
	cw.begin(blockSection)
	cw.u32(0x1a2b3c4d) // by which readers tell the byte order
	cw.u16(1)          // version 1.0
	cw.u16(0)
	cw.u64(1<<64 - 1) // length of the section: not known
	cw.text(sectionApplication, application)
	cw.end()
	return cw
}

// AddPort makes the port of that name an interface, unless it is one.
func (w *Writer) AddPort(name, description string, now time.Time) error {
	if _, ok := w.interfaces[name]; ok {
		return w.err
	}
	w.interfaces[name] = uint32(len(w.interfaces))
	w.started = append(w.started, now)
	w.begin(blockInterface)
	w.u16(linkTypeEthernet)
	w.u16(0)
	w.u32(w.snapLen)
	w.text(interfaceName, name)
	w.text(interfaceDescr, description)
	w.option(interfaceTSResol, 1)
	w.block = append(w.block, 9, 0, 0, 0) // 10 to the power of -9 seconds, and padding
	w.end()
	return w.err
}

// WritePacket writes a packet of a port that AddPort has made an interface.
func (w *Writer) WritePacket(p *vswitch.Packet) error {
	w.begin(blockPacket)
	w.u32(w.interfaces[p.Port])
	w.time(p.Time)
	w.u32(uint32(len(p.Data)))
	w.u32(uint32(min(p.Len, math.MaxUint32))) // one that is dropped for its length may have any
	w.block = append(w.block, p.Data...)
	w.pad()
	if p.Dropped {
		w.text(optComment, "drop="+p.Reason.String())
	}
	if p.Offload.NeedsChecksum {
		w.text(optComment, "checksum=completed")
	}
	if p.Offload.GSO != vswitch.GSONone {
		w.text(optComment, gsoComment(p.Offload))
	}
	w.option(packetFlags, 4)
	w.u32(flags(p))
	if p.Lost > 0 {
		w.option(packetDropCount, 8)
		w.u64(p.Lost)
	}
	w.end()
	return w.err
}

// WriteStatistics writes what there was at a port that AddPort has made an
// interface, from then to now.
func (w *Writer) WriteStatistics(p vswitch.ObservedPort, now time.Time) error {
	id := w.interfaces[p.Port]
	w.begin(blockStatistics)
	w.u32(id)
	w.time(now)
	w.option(statisticsStart, 8)
	w.time(w.started[id])
	w.option(statisticsEnd, 8)
	w.time(now)
	w.option(statisticsReceived, 8)
	w.u64(p.Seen)
	w.option(statisticsDropped, 8)
	w.u64(p.Lost)
	w.end()
	return w.err
}

// Flush hands all that was written to the underlying writer.
func (w *Writer) Flush() error {
	if err := w.w.Flush(); w.err == nil {
		w.err = err
	}
	return w.err
}

// gsoComment says what a frame was to be cut into.
func gsoComment(o vswitch.Offload) string {
	kind := "udp"
	switch o.GSO {
	case vswitch.GSOTCPv4:
		kind = "tcp4"
	case vswitch.GSOTCPv6:
		kind = "tcp6"
	}
	return "gso=" + kind + "/" + strconv.Itoa(int(o.GSOSize))
}

// flags returns the packet's flags word.
func flags(p *vswitch.Packet) uint32 {
	f := uint32(flagInbound)
	if p.Direction == vswitch.Out {
		f = flagOutbound
	}
	if len(p.Data) < 6 {
		return f // without a destination
	}
	switch dst := vswitch.MAC(p.Data); {
	case dst == vswitch.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}:
		f |= flagBroadcast
	case dst.IsMulticast():
		f |= flagMulticast
	default:
		f |= flagUnicast
	}
	return f
}

// A block is its type, its length, what is in it, options, and its length again,
// all in multiples of four bytes.

func (w *Writer) begin(kind uint32) {
	w.block = w.block[:0]
	w.u32(kind)
	w.u32(0) // the length, when it is known
}

func (w *Writer) end() {
	w.option(optEnd, 0)
	n := uint32(len(w.block) + 4)
	binary.LittleEndian.PutUint32(w.block[4:], n)
	w.u32(n)
	if _, err := w.w.Write(w.block); w.err == nil {
		w.err = err
	}
}

// option begins an option of n bytes, which must follow.
func (w *Writer) option(code uint16, n int) {
	w.u16(code)
	w.u16(uint16(n))
}

// maxText is how much of a text an option takes: what its length can say, less
// padding.
const maxText = 1<<16 - 4

func (w *Writer) text(code uint16, s string) {
	s = s[:min(len(s), maxText)]
	w.option(code, len(s))
	w.block = append(w.block, s...)
	w.pad()
}

func (w *Writer) pad() {
	for len(w.block)%4 != 0 {
		w.block = append(w.block, 0)
	}
}

// time appends a time in nanoseconds, the more significant half first whatever
// the byte order.
func (w *Writer) time(t time.Time) {
	ns := uint64(t.UnixNano())
	w.u32(uint32(ns >> 32))
	w.u32(uint32(ns))
}

func (w *Writer) u16(v uint16) { w.block = binary.LittleEndian.AppendUint16(w.block, v) }
func (w *Writer) u32(v uint32) { w.block = binary.LittleEndian.AppendUint32(w.block, v) }
func (w *Writer) u64(v uint64) { w.block = binary.LittleEndian.AppendUint64(w.block, v) }

package tuliptest

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"testing"
)

// CSR5 events and, in the same places, CSR7 enables.
const (
	TI  = 1 << 0  // transmit interrupt
	TPS = 1 << 1  // transmit process stopped
	TU  = 1 << 2  // transmit buffer unavailable
	TJT = 1 << 3  // transmit jabber timeout
	RI  = 1 << 6  // receive interrupt
	RU  = 1 << 7  // receive buffer unavailable
	RPS = 1 << 8  // receive process stopped
	RWT = 1 << 9  // receive watchdog timeout
	GTE = 1 << 11 // general-purpose timer expired
	FBE = 1 << 13 // fatal bus error
	AIS = 1 << 15 // abnormal summary
	NIS = 1 << 16 // normal summary

	RS = 7 << 17 // receive state
	TS = 7 << 20 // transmit state
)

// Other registers' bits.
const (
	SWR = 1 << 0  // CSR0: software reset
	DBO = 1 << 20 // CSR0: big-endian descriptors

	SR  = 1 << 1  // CSR6: start receive
	PR  = 1 << 6  // CSR6: promiscuous
	PM  = 1 << 7  // CSR6: pass all multicast
	FD  = 1 << 9  // CSR6: full duplex
	ST  = 1 << 13 // CSR6: start transmit
	MII = 1 << 18 // CSR6: MII port
	RA  = 1 << 30 // CSR6: receive all
)

// Descriptor bits.
const (
	OWN = 1 << 31

	IC   = 1 << 31 // TDES1: interrupt on completion
	LS   = 1 << 30 // TDES1: last segment
	FS   = 1 << 29 // TDES1: first segment
	FT1  = 1 << 28 // TDES1: filter type, high bit
	SET  = 1 << 27 // TDES1: set-up frame
	AC   = 1 << 26 // TDES1: buffers hold the FCS
	ER   = 1 << 25 // TDES1, RDES1: end of ring
	CH   = 1 << 24 // TDES1, RDES1: second address is the next descriptor
	FT0  = 1 << 22 // TDES1: filter type, low bit
	Size = 0x7ff   // TDES1, RDES1: buffer 1; shifted by 11, buffer 2

	RxFF = 1 << 30 // RDES0: filtering fail
	RxES = 1 << 15 // RDES0: error summary
	RxDE = 1 << 14 // RDES0: descriptor error
	RxMF = 1 << 10 // RDES0: group address
	RxFS = 1 << 9  // RDES0: first descriptor
	RxLS = 1 << 8  // RDES0: last descriptor
	RxTL = 1 << 7  // RDES0: too long
	RxFT = 1 << 5  // RDES0: Ethernet type
	RxRW = 1 << 4  // RDES0: receive watchdog

	SetupDone = 0x7fffffff // TDES0 of a finished set-up frame
)

// MAC addresses that tests share.
var (
	Station   = [6]byte{0x00, 0x15, 0x5d, 0x12, 0x34, 0x56}
	Other     = [6]byte{0x00, 0x15, 0x5d, 0xaa, 0xbb, 0xcc}
	Broadcast = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	AllHosts  = [6]byte{0x01, 0x00, 0x5e, 0x00, 0x00, 0x01}
)

// Options are a driver's habits. The zero value is a driver like Linux's: two rings of
// 16 descriptors, one buffer of 1536 bytes in each receive descriptor.
type Options struct {
	RxCount, TxCount int    // descriptors, up to 32
	RxBuf1, RxBuf2   int    // bytes of the receive buffers, up to 2047 together
	Chain            bool   // link descriptors by address instead of by place
	Skip             uint32 // longwords between the descriptors of a ring
	TxBuf2           bool   // put the second half of each frame into buffer 2
	BigEndian        bool   // descriptors in big-endian order
	CSR6             uint32 // bits for CSR6 besides ST and SR; zero means MII and full duplex
	Mask             uint32 // CSR7; zero means all events
}

// Driver drives a 21140A. Its methods fail the test when the adapter does not do what
// a driver relies on.
type Driver struct {
	TB testing.TB
	HW Hardware
	Options

	order binary.ByteOrder
	rx    int // receive descriptor that the next frame begins in
	tx    int // next transmit descriptor
	done  int // oldest transmit descriptor that WantTx has not seen
}

// Where things are, from Hardware.MemBase on.
const (
	rxRing  = 0x0_0000
	txRing  = 0x0_4000
	setup   = 0x0_8000
	rxBufs  = 0x1_0000
	txBufs  = 0x2_0000
	rxRoom  = 0x800
	txRoom  = 0x1000
	allInts = 0x1efef
)

// noSize2 is a second size, which means nothing in a chained descriptor.
const noSize2 = 0x155 << 11

// NewDriver returns a driver that has not touched its hardware yet.
func NewDriver(tb testing.TB, hw Hardware, o Options) *Driver {
	if o.RxCount == 0 {
		o.RxCount = 16
	}
	if o.TxCount == 0 {
		o.TxCount = 16
	}
	if o.RxBuf1 == 0 && o.RxBuf2 == 0 {
		o.RxBuf1 = 1536
	}
	if o.CSR6 == 0 {
		o.CSR6 = MII | FD
	}
	if o.Mask == 0 {
		o.Mask = allInts
	}
	d := &Driver{TB: tb, HW: hw, Options: o, order: binary.LittleEndian}
	if o.BigEndian {
		d.order = binary.BigEndian
	}
	return d
}

// Reset brings the chip up with empty rings: bus mastering on, software reset, bus
// mode, lists, interrupt mask. Both processes are stopped afterwards.
func (d *Driver) Reset() {
	d.TB.Helper()
	d.HW.WriteConfig(4, 2, 0x147)
	d.HW.WriteCSR(0, SWR)
	if v := d.HW.ReadCSR(0); v&SWR != 0 {
		d.TB.Fatalf("CSR0 = %#x: still in reset", v)
	}
	mode := uint32(0x01a08000) | d.Skip<<2
	if d.BigEndian {
		mode |= DBO
	}
	d.HW.WriteCSR(0, mode)
	d.HW.WriteCSR(6, d.CSR6)

	d.rx, d.tx, d.done = 0, 0, 0
	for i := range d.RxCount {
		d.Arm(i)
	}
	for i := range d.TxCount {
		d.PutDesc(d.TxDesc(i), 0, 0, 0, 0)
	}
	d.HW.WriteCSR(3, d.RxDesc(0))
	d.HW.WriteCSR(4, d.TxDesc(0))
	d.HW.WriteCSR(5, ^uint32(0))
	d.HW.WriteCSR(7, d.Mask)
}

// Start starts both processes.
func (d *Driver) Start() {
	d.HW.WriteCSR(6, d.CSR6|ST|SR)
}

// Stop stops both processes and wants them stopped as soon as the write is done, and
// TPS and RPS set if they were running.
func (d *Driver) Stop() {
	d.TB.Helper()
	before := d.HW.ReadCSR(5)
	d.HW.WriteCSR(5, TPS|RPS)
	d.HW.WriteCSR(6, d.CSR6)
	var want uint32
	if before&TS != 0 {
		want |= TPS
	}
	if before&RS != 0 {
		want |= RPS
	}
	if v := d.HW.ReadCSR(5); v&(TS|RS|TPS|RPS) != want {
		d.TB.Fatalf("CSR5 = %#x after a stop, want states 0 and events %#x", v, want)
	}
}

// RewindTx stops both processes, moves the transmit list back to its first descriptor and
// starts again.
func (d *Driver) RewindTx() {
	d.TB.Helper()
	d.Stop()
	d.HW.WriteCSR(4, d.TxDesc(0))
	d.tx, d.done = 0, 0
	d.Start()
}

// RxDesc and TxDesc return the address of descriptor i.
func (d *Driver) RxDesc(i int) uint32 { return d.descAddr(rxRing, i) }
func (d *Driver) TxDesc(i int) uint32 { return d.descAddr(txRing, i) }

func (d *Driver) descAddr(ring uint32, i int) uint32 {
	if d.Chain { // not in order of address, to tell chaining from stepping
		return d.HW.MemBase() + ring + uint32(i^1)*32
	}
	return d.HW.MemBase() + ring + uint32(i)*(16+4*d.Skip)
}

// RxBuf and TxBuf return the address of the memory for the buffers of descriptor i.
func (d *Driver) RxBuf(i int) uint32 { return d.HW.MemBase() + rxBufs + uint32(i)*rxRoom }
func (d *Driver) TxBuf(i int) uint32 { return d.HW.MemBase() + txBufs + uint32(i)*txRoom }

// Load loads one longword of a descriptor.
func (d *Driver) Load(addr uint32) uint32 {
	var p [4]byte
	d.HW.ReadMem(addr, p[:])
	return d.order.Uint32(p[:])
}

// Store stores one longword of a descriptor.
func (d *Driver) Store(addr, v uint32) {
	var p [4]byte
	d.order.PutUint32(p[:], v)
	d.HW.WriteMem(addr, p[:])
}

// PutDesc writes a whole descriptor, the status last.
func (d *Driver) PutDesc(addr, status, control, addr1, addr2 uint32) {
	d.Store(addr+4, control)
	d.Store(addr+8, addr1)
	d.Store(addr+12, addr2)
	d.Store(addr, status)
}

// Arm gives receive descriptor i to the chip.
func (d *Driver) Arm(i int) {
	control := uint32(d.RxBuf1) | uint32(d.RxBuf2)<<11
	addr1 := d.RxBuf(i)
	addr2 := addr1 + uint32(d.RxBuf1)
	if d.Chain {
		control, addr2 = uint32(d.RxBuf1)|noSize2|CH, d.RxDesc((i+1)%d.RxCount)
	} else if i == d.RxCount-1 {
		control |= ER
	}
	d.PutDesc(d.RxDesc(i), OWN, control, addr1, addr2)
}

// Queue gives the chip one transmit descriptor with the bytes of p and returns its
// number; flags are bits of TDES1 besides size and list bits. The chip is not told.
func (d *Driver) Queue(p []byte, flags uint32) int {
	d.TB.Helper()
	i := d.tx
	d.tx = (d.tx + 1) % d.TxCount
	at := d.TxDesc(i)
	if d.Load(at)&OWN != 0 {
		d.TB.Fatalf("transmit descriptor %d is still the chip's", i)
	}
	buf := d.TxBuf(i)
	d.HW.WriteMem(buf, p)
	control, addr2 := flags|uint32(len(p)), uint32(0)
	switch {
	case d.Chain:
		control, addr2 = control|noSize2|CH, d.TxDesc(d.tx)
	case d.TxBuf2:
		half := len(p) / 2
		control = flags | uint32(half) | uint32(len(p)-half)<<11
		addr2 = buf + uint32(half)
	}
	if d.tx == 0 && !d.Chain {
		control |= ER
	}
	d.PutDesc(at, OWN, control, buf, addr2)
	return i
}

// Kick is a transmit poll demand.
func (d *Driver) Kick() { d.HW.WriteCSR(1, 0) }

// Send sends a frame in one descriptor and asks for an interrupt.
func (d *Driver) Send(frame []byte) *Driver {
	d.TB.Helper()
	d.Queue(frame, FS|LS|IC)
	d.Kick()
	return d
}

// WantTx wants frame on the wire next, padded, and the descriptors up to its last one
// given back without error.
func (d *Driver) WantTx(frame []byte) *Driver {
	d.TB.Helper()
	got := d.HW.Transmitted()
	if want := Pad(frame); !bytes.Equal(got, want) {
		d.TB.Fatalf("on the wire:\n got % x\nwant % x", got, want)
	}
	if v := d.Load(d.TxDesc(d.done)); v != 0 {
		d.TB.Fatalf("TDES0 of descriptor %d = %#x, want 0", d.done, v)
	}
	d.done = (d.done + 1) % d.TxCount
	return d
}

// WantNoTx wants nothing on the wire.
func (d *Driver) WantNoTx() *Driver {
	d.TB.Helper()
	if got := d.HW.Transmitted(); got != nil {
		d.TB.Fatalf("on the wire: % x, want nothing", got)
	}
	return d
}

// WantInterrupt wants the pin asserted and all of events set, acknowledges what is set
// and wants the pin released.
func (d *Driver) WantInterrupt(events uint32) *Driver {
	d.TB.Helper()
	v := d.HW.ReadCSR(5)
	if v&events != events || !d.HW.Interrupt() {
		d.TB.Fatalf("CSR5 = %#x, pin %v; want events %#x and the pin", v, d.HW.Interrupt(), events)
	}
	d.HW.WriteCSR(5, v)
	return d.WantQuiet()
}

// WantQuiet wants the pin released and no summary.
func (d *Driver) WantQuiet() *Driver {
	d.TB.Helper()
	if v := d.HW.ReadCSR(5); v&(NIS|AIS) != 0 || d.HW.Interrupt() {
		d.TB.Fatalf("CSR5 = %#x, pin %v; want no interrupt", v, d.HW.Interrupt())
	}
	return d
}

// WantState wants the receive and transmit process states.
func (d *Driver) WantState(rs, ts uint32) *Driver {
	d.TB.Helper()
	v := d.HW.ReadCSR(5)
	if got := v & RS >> 17; got != rs {
		d.TB.Errorf("receive state %d, want %d", got, rs)
	}
	if got := v & TS >> 20; got != ts {
		d.TB.Errorf("transmit state %d, want %d", got, ts)
	}
	return d
}

// sendSetup sends the set-up frame p and wants it done.
func (d *Driver) sendSetup(p [192]byte, flags uint32) {
	d.TB.Helper()
	i := d.Queue(p[:], flags|SET|IC)
	at := d.TxDesc(i)
	d.Store(at+4, d.Load(at+4)&^(Size<<11|Size)|192)
	before := [3]uint32{d.Load(at + 4), d.Load(at + 8), d.Load(at + 12)}
	d.Kick()
	if v := d.Load(at); v != SetupDone {
		d.TB.Fatalf("TDES0 of a set-up frame = %#x, want %#x", v, SetupDone)
	}
	if after := [3]uint32{d.Load(at + 4), d.Load(at + 8), d.Load(at + 12)}; after != before {
		d.TB.Fatalf("the set-up descriptor changed from %#x to %#x", before, after)
	}
	d.done = (i + 1) % d.TxCount
}

// LoadSetupFrame sends a set-up frame with up to 16 addresses; the other slots repeat
// the first. type bits FT0 and FT1 may be given in flags.
func (d *Driver) LoadSetupFrame(flags uint32, macs ...[6]byte) {
	d.TB.Helper()
	var p [192]byte
	for i := range 16 {
		mac := macs[0]
		if i < len(macs) {
			mac = macs[i]
		}
		putSetupMAC(p[i*12:], mac)
	}
	d.sendSetup(p, flags)
}

// LoadHashFrame sends a set-up frame with a hash table of the addresses in groups, and
// the station address; flags has FT0, and FT1 for a filter by hash only.
func (d *Driver) LoadHashFrame(flags uint32, station [6]byte, groups ...[6]byte) {
	d.TB.Helper()
	var p [192]byte
	for _, g := range groups {
		i := HashIndex(g)
		p[i/16*4+i/8%2] |= 1 << (i % 8)
	}
	putSetupMAC(p[156:], station)
	d.sendSetup(p, flags)
}

// putSetupMAC writes an address as set-up frames have it, with rubbish in the halves
// that do not count.
func putSetupMAC(p []byte, mac [6]byte) {
	for i := range 3 {
		p[i*4], p[i*4+1] = mac[2*i], mac[2*i+1]
		p[i*4+2], p[i*4+3] = ^mac[2*i], ^mac[2*i+1]
	}
}

// HashIndex returns the bit of the hash table for an address, computed bit by bit.
func HashIndex(mac [6]byte) int {
	crc := ^uint32(0)
	for _, b := range mac {
		for i := range 8 {
			carry := (crc ^ uint32(b)>>i) & 1
			crc >>= 1
			if carry != 0 {
				crc ^= 0xedb88320
			}
		}
	}
	return int(crc & 0x1ff)
}

// Receive takes the next frame out of the receive ring, gives its descriptors back to
// the chip, and returns the frame with the RDES0 of its last descriptor. It returns nil
// if there is none. FS, LS, the length and the FCS are checked.
func (d *Driver) Receive() (frame []byte, status uint32) {
	d.TB.Helper()
	for n := 0; ; n++ {
		i := d.rx
		at := d.RxDesc(i)
		status = d.Load(at)
		if status&OWN != 0 {
			if n > 0 {
				d.TB.Fatalf("receive descriptor %d in the middle of a frame is the chip's", i)
			}
			return nil, 0
		}
		if first := status&RxFS != 0; first != (n == 0) {
			d.TB.Fatalf("RDES0 of descriptor %d, number %d of its frame, = %#x: FS is wrong", i, n, status)
		}
		p := make([]byte, d.RxBuf1+d.RxBuf2)
		d.HW.ReadMem(d.RxBuf(i), p)
		frame = append(frame, p...)
		d.Arm(i)
		d.rx = (d.rx + 1) % d.RxCount
		if status&RxLS != 0 {
			break
		}
		if status>>16 != 0 {
			d.TB.Errorf("RDES0 of a descriptor that is not the last = %#x, has a length", status)
		}
	}
	n := int(status >> 16 & 0x3fff)
	if status&RxDE != 0 {
		return frame[:n], status
	}
	if n-4 > len(frame) {
		d.TB.Fatalf("RDES0 = %#x: %d bytes in buffers of %d", status, n, len(frame))
	}
	payload := frame[:n-4]
	if n <= len(frame) { // otherwise the FCS did not fit and was left out
		want := crc32.ChecksumIEEE(payload)
		if got := binary.LittleEndian.Uint32(frame[n-4 : n]); got != want {
			d.TB.Errorf("FCS %#x, want %#x", got, want)
		}
	}
	return payload, status
}

// WantRx wants frame, padded, in the receive ring next, with the given bits among FF,
// ES, DE, MF, TL, FT and RW in its status.
func (d *Driver) WantRx(frame []byte, status uint32) *Driver {
	d.TB.Helper()
	got, st := d.Receive()
	if want := Pad(frame); !bytes.Equal(got, want) {
		d.TB.Fatalf("received:\n got % x\nwant % x", got, want)
	}
	if st&^(0x3fff<<16|RxFS|RxLS) != status {
		d.TB.Errorf("RDES0 = %#x, want flags %#x", st, status)
	}
	return d
}

// WantNoRx wants no frame in the receive ring.
func (d *Driver) WantNoRx() *Driver {
	d.TB.Helper()
	if got, st := d.Receive(); got != nil {
		d.TB.Fatalf("received with RDES0 = %#x: % x, want nothing", st, got)
	}
	return d
}

// Frame returns an Ethernet frame of n bytes, at least 14, from src to dst, of the
// experimental type 88B5 and filled with a pattern that depends on n.
func Frame(dst, src [6]byte, n int) []byte {
	p := make([]byte, n)
	copy(p, dst[:])
	copy(p[6:], src[:])
	p[12], p[13] = 0x88, 0xb5
	for i := 14; i < n; i++ {
		p[i] = byte(i*7 + n)
	}
	return p
}

// Pad returns frame with zeros up to 60 bytes.
func Pad(frame []byte) []byte {
	if len(frame) >= 60 {
		return frame
	}
	return append(frame[:len(frame):len(frame)], make([]byte, 60-len(frame))...)
}

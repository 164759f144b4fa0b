package tuliptest

import "testing"

// Lines of CSR9.
const (
	SROMSelect = 1 << 11 // CSR9<SR>
	SROMRead   = 1 << 14 // CSR9<RD>
	SROMCS     = 1 << 0
	SROMClock  = 1 << 1
	SROMIn     = 1 << 2 // to the ROM
	SROMOut    = 1 << 3 // from the ROM

	MDC   = 1 << 16
	MDO   = 1 << 17
	MIIIn = 1 << 18 // the PHY may drive
	MDI   = 1 << 19
)

// line returns 1 if any of bits is set in CSR9.
func (d *Driver) line(bits uint32) uint32 {
	if d.HW.ReadCSR(9)&bits != 0 {
		return 1
	}
	return 0
}

// sromBit clocks one bit into the ROM and returns its answer.
func (d *Driver) sromBit(base, bit uint32) uint32 {
	v := base | bit*SROMIn
	d.HW.WriteCSR(9, v)
	d.HW.WriteCSR(9, v|SROMClock)
	got := d.line(SROMOut)
	d.HW.WriteCSR(9, v)
	return got
}

// A SROMStyle is a way in which drivers read one word of the serial ROM. It reports
// the number of address bits that it found the ROM to have.
type SROMStyle struct {
	Name string
	Read func(d *Driver, addr uint32) (word uint16, addressBits int)
}

// SROMStyles are the styles of drivers in use. They differ in leading bits, in the
// select lines between words, and in how they find the number of address bits.
var SROMStyles = []SROMStyle{
	{"Linux: one shot of 13 bits, then reads with what its answer says", sromLinux},
	{"tlp: start, opcode, and zeros until the data line falls", sromCount},
	{"9front: clocks the address until the data line falls, starting from eight bits", sromShrink},
	{"ReactOS: six bits, then the data line must be low", sromFixed},
}

func sromLinux(d *Driver, addr uint32) (uint16, int) {
	const base = SROMRead | SROMSelect | SROMCS
	shot := func(addr uint32, bits int) uint32 {
		d.HW.WriteCSR(9, base&^SROMCS)
		d.HW.WriteCSR(9, base)
		command := 6<<bits | addr
		var got uint32
		for i := 4 + bits; i >= 0; i-- {
			got = got<<1 | d.sromBit(base, command>>i&1)
		}
		for range 16 {
			got = got<<1 | d.sromBit(base, 0)
		}
		d.HW.WriteCSR(9, base&^SROMCS)
		return got
	}
	bits := 6
	if shot(0xff, 8)&(1<<18) != 0 {
		bits = 8
	}
	return uint16(shot(addr, bits)), bits
}

// sromBegin selects the ROM and sends the start bit and the opcode of a read.
func (d *Driver) sromBegin() {
	d.HW.WriteCSR(9, SROMSelect)
	d.HW.WriteCSR(9, SROMSelect|SROMCS)
	for _, bit := range []uint32{1, 1, 0} {
		d.sromBit(SROMSelect|SROMCS, bit)
	}
}

func (d *Driver) sromData() (word uint16) {
	for range 16 {
		word = word<<1 | uint16(d.sromBit(SROMSelect|SROMCS, 0))
	}
	d.HW.WriteCSR(9, SROMSelect)
	return word
}

func sromCount(d *Driver, addr uint32) (uint16, int) {
	d.sromBegin()
	bits := 1
	for d.sromBit(SROMSelect|SROMCS, 0) != 0 && bits < 13 {
		bits++
	}
	d.HW.WriteCSR(9, SROMSelect)

	d.sromBegin()
	for i := bits - 1; i >= 0; i-- {
		d.sromBit(SROMSelect|SROMCS, addr>>i&1)
	}
	return d.sromData(), bits
}

func sromShrink(d *Driver, addr uint32) (uint16, int) {
	size := 8
	d.sromBegin()
	for i := size - 1; i >= 0; i-- {
		if d.sromBit(SROMSelect|SROMCS, addr>>i&1) == 0 {
			size -= i
			break
		}
	}
	d.HW.WriteCSR(9, SROMSelect)
	d.sromBegin()
	for i := size - 1; i >= 0; i-- {
		d.sromBit(SROMSelect|SROMCS, addr>>i&1)
	}
	return d.sromData(), size
}

func sromFixed(d *Driver, addr uint32) (uint16, int) {
	d.sromBegin()
	bits := 6
	for i := bits - 1; i >= 0; i-- {
		if low := d.sromBit(SROMSelect|SROMCS, addr>>i&1) == 0; low != (i == 0) {
			bits = -1
		}
	}
	return d.sromData(), bits
}

// ReadSROM returns the bytes of the serial ROM.
func (d *Driver) ReadSROM() (image [128]byte) {
	for i := range uint32(64) {
		word, _ := sromFixed(d, i)
		image[2*i], image[2*i+1] = byte(word), byte(word>>8)
	}
	return image
}

// WriteSROM enables writing, stores a word and disables writing again.
func (d *Driver) WriteSROM(addr uint32, word uint16) {
	send := func(bits, n uint32) {
		d.HW.WriteCSR(9, SROMSelect)
		d.HW.WriteCSR(9, SROMSelect|SROMCS)
		for i := int(n) - 1; i >= 0; i-- {
			d.sromBit(SROMSelect|SROMCS, bits>>i&1)
		}
		d.HW.WriteCSR(9, SROMSelect)
	}
	send(0b100_110000, 9)
	send(0b101<<22|addr<<16|uint32(word), 25)
	send(0b100_000000, 9)
}

// mdioBit drives one bit and clocks it.
func (d *Driver) mdioBit(extra, bit uint32) {
	v := extra | bit*MDO
	d.HW.WriteCSR(9, v)
	d.HW.WriteCSR(9, v|MDC)
	d.HW.WriteCSR(9, v)
}

// mdioSend drives the low n bits of v, the highest first.
func (d *Driver) mdioSend(extra, v uint32, n int) {
	for i := n - 1; i >= 0; i-- {
		d.mdioBit(extra, v>>i&1)
	}
}

// An MDIOStyle is a way in which drivers read a PHY register. ok is false if the style
// checks the turnaround and no PHY pulled the line low.
type MDIOStyle struct {
	Name string
	Read func(d *Driver, phy, reg uint32) (v uint16, ok bool)
}

// MDIOStyles are the styles of drivers in use. They differ in the edge at which they
// sample and in other lines that they hold.
var MDIOStyles = []MDIOStyle{
	{"Linux: 19 samples, each before a rising edge, no turnaround check", mdioLinux},
	{"9front: 18 samples, the first tells whether there is a PHY", mdio9front},
	{"tlp: one clock, sample the turnaround, then sample before each edge", mdioTLP},
	{"de: one clock, sample the turnaround, then sample after each edge", mdioDE},
	{"illumos: like de with write and read operation lines held", mdioIllumos},
}

func mdioLinux(d *Driver, phy, reg uint32) (uint16, bool) {
	d.mdioSend(0, ^uint32(0), 32)
	d.mdioBit(0, 1) // a 33rd one
	d.mdioSend(0, 0b0110<<10|phy<<5|reg, 14)
	var v uint32
	for range 19 {
		d.HW.WriteCSR(9, MIIIn)
		v = v<<1 | d.line(MDI)
		d.HW.WriteCSR(9, MIIIn|MDC)
	}
	return uint16(v >> 1), true
}

func mdio9front(d *Driver, phy, reg uint32) (uint16, bool) {
	d.mdioSend(0, ^uint32(0), 32)
	d.mdioSend(0, 0b0110<<10|phy<<5|reg, 14)
	var v uint32
	for range 18 {
		d.HW.WriteCSR(9, MIIIn)
		v = v<<1 | d.line(MDI)
		d.HW.WriteCSR(9, MIIIn|MDC)
	}
	return uint16(v), v&(1<<16) == 0
}

func mdioTLP(d *Driver, phy, reg uint32) (uint16, bool) {
	d.mdioSend(0, ^uint32(0), 32)
	d.mdioSend(0, 0b0110<<10|phy<<5|reg, 14)
	d.HW.WriteCSR(9, MIIIn)
	d.mdioBit(MIIIn, 0)
	low := d.line(MDI) == 0
	d.mdioBit(MIIIn, 0)
	var v uint32
	for range 16 {
		v = v<<1 | d.line(MDI)
		d.mdioBit(MIIIn, 0)
	}
	d.HW.WriteCSR(9, 0)
	return uint16(v), low
}

func mdioDE(d *Driver, phy, reg uint32) (uint16, bool) {
	return d.mdioAfter(0, 0, phy, reg)
}

func mdioIllumos(d *Driver, phy, reg uint32) (uint16, bool) {
	const write, read = 1 << 13, 1 << 14
	return d.mdioAfter(write, read, phy, reg)
}

func (d *Driver) mdioAfter(driving, released, phy, reg uint32) (uint16, bool) {
	d.mdioSend(driving, ^uint32(0), 32)
	d.mdioSend(driving, 0b0110<<10|phy<<5|reg, 14)
	d.HW.WriteCSR(9, MIIIn|released)
	d.mdioBit(MIIIn|released, 0)
	low := d.line(MDI) == 0
	var v uint32
	for range 16 {
		d.mdioBit(MIIIn|released, 0)
		v = v<<1 | d.line(MDI)
	}
	d.mdioBit(MIIIn|released, 0)
	return uint16(v), low
}

// ReadPHY returns a PHY register; all ones where no PHY answers.
func (d *Driver) ReadPHY(phy, reg uint32) uint16 {
	v, _ := mdioLinux(d, phy, reg)
	return v
}

// WritePHY writes a PHY register and stops clocking with the last bit of data.
func (d *Driver) WritePHY(phy, reg uint32, v uint16) {
	d.mdioSend(0, ^uint32(0), 32)
	d.mdioSend(0, 0b0101<<28|phy<<23|reg<<18|0b10<<16|uint32(v), 32)
}

// WantSROM fails the test unless the serial ROM holds want.
func (d *Driver) WantSROM(tb testing.TB, want [128]byte) {
	tb.Helper()
	if got := d.ReadSROM(); got != want {
		tb.Errorf("serial ROM:\n got % x\nwant % x", got, want)
	}
}

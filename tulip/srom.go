package tulip

import (
	"encoding/binary"
	"hash/crc32"
)

// SROM is the 93C46 serial ROM, 64 words of 16 bits, with its serial engine: lines in,
// one line out, which keeps its level until the next rising clock edge.
type SROM struct {
	Words    [64]uint16 // contents
	Writable bool       // EWEN was given

	Phase SROMPhase
	CS    bool   // chip select line, as last seen
	SK    bool   // clock line, as last seen
	DO    bool   // data line to the chip; pulled up
	Bits  uint8  // bits shifted in this phase
	Shift uint16 // the command or data shifted in, or the word shifted out
	Cmd   uint8  // two bits of opcode, six of address
}

// SROMPhase is what the serial ROM does with the next clock edge.
type SROMPhase uint8

const (
	SROMIdle    SROMPhase = iota // not selected, or the command is complete
	SROMStart                    // waits for the start bit
	SROMCommand                  // takes opcode and address
	SROMRead                     // gives out data
	SROMWrite                    // takes data
	SROMStore                    // programs when deselected
)

// Opcodes, and those of the address bits b5:4 with opcode 00.
const (
	sromExtended = 0
	sromWRITE    = 1
	sromREAD     = 2
	sromERASE    = 3

	sromEWDS = 0
	sromWRAL = 1
	sromERAL = 2
	sromEWEN = 3
)

// idle is the state of the engine with all lines low.
func (r *SROM) idle() {
	*r = SROM{Words: r.Words, Writable: r.Writable, DO: true}
}

// lines sets the lines to new levels.
func (r *SROM) lines(cs, sk, di bool) {
	switch {
	case r.CS && !cs:
		r.program()
		r.Phase, r.DO = SROMIdle, true
	case !r.CS && cs:
		r.Phase, r.DO, r.Bits, r.Shift = SROMStart, true, 0, 0
	case cs && sk && !r.SK:
		r.clock(di)
	}
	r.CS, r.SK = cs, sk
}

// clock is a rising clock edge. The data line stays high until the edge of the last
// address bit of a read and goes low exactly there: this is how drivers find out the
// number of address bits.
func (r *SROM) clock(di bool) {
	bit := uint16(0)
	if di {
		bit = 1
	}
	switch r.Phase {
	case SROMStart:
		if di {
			r.Phase = SROMCommand
		}
	case SROMCommand:
		r.Shift = r.Shift<<1 | bit
		if r.Bits++; r.Bits == 8 {
			r.Cmd, r.Shift, r.Bits = uint8(r.Shift), 0, 0
			r.command()
		}
	case SROMRead:
		if r.Bits == 0 {
			r.Shift = r.Words[r.Cmd&63]
		}
		r.DO = r.Shift&0x8000 != 0
		r.Shift <<= 1
		if r.Bits++; r.Bits == 16 { // a longer read goes on with the next word
			r.Cmd, r.Bits = r.Cmd+1, 0
		}
	case SROMWrite:
		r.Shift = r.Shift<<1 | bit
		if r.Bits++; r.Bits == 16 {
			r.Phase = SROMStore
		}
	}
}

// command acts on a complete opcode and address.
func (r *SROM) command() {
	switch r.Cmd >> 6 {
	case sromREAD:
		r.Phase, r.DO = SROMRead, false
	case sromWRITE:
		r.Phase = SROMWrite
	case sromERASE:
		r.Phase = SROMStore
	case sromExtended:
		switch r.Cmd >> 4 {
		case sromWRAL:
			r.Phase = SROMWrite
		case sromERAL:
			r.Phase = SROMStore
		case sromEWEN, sromEWDS:
			r.Writable = r.Cmd>>4 == sromEWEN
			r.Phase = SROMIdle
		}
	}
}

// program does what a complete write or erase command asked for. It takes no time: a
// driver that selects the chip again to wait for it sees it ready.
func (r *SROM) program() {
	if r.Phase != SROMStore || !r.Writable {
		return
	}
	word := r.Shift
	all := false
	switch r.Cmd >> 6 {
	case sromERASE:
		word = 0xffff
	case sromExtended:
		all = true
		if r.Cmd>>4 == sromERAL {
			word = 0xffff
		}
	}
	for i := range r.Words {
		if all || i == int(r.Cmd&63) {
			r.Words[i] = word
		}
	}
}

// load fills the ROM with an image.
func (r *SROM) load(image [128]byte) {
	for i := range r.Words {
		r.Words[i] = binary.LittleEndian.Uint16(image[2*i:])
	}
}

// Offsets into the image (Digital Semiconductor 21X4 Serial ROM Format).
const (
	sromIDCheck  = 16
	sromVersion  = 18
	sromCount    = 19
	sromMAC      = 20
	sromLeafAt   = 27
	sromLeaf     = 30
	sromChecksum = 126
)

// sromLeafMII is the info leaf of a 21140 with one MII PHY. The PHY number is an index,
// not an address. General-purpose port control is zero because one BSD driver takes
// that byte for the block count.
var sromLeafMII = [...]byte{
	0x00, 0x08, // connection type: autosense
	0x00,       // general-purpose port control
	0x01,       // blocks
	0x80 | 12,  // extended block, 12 bytes follow
	0x01,       // type 1: MII PHY
	0x00,       // PHY number
	0x00,       // length of its general-purpose port sequence
	0x00,       // length of its reset sequence
	0x00, 0x78, // capabilities: 10 and 100 Mb/s, half and full duplex
	0xe0, 0x01, // advertise the same
	0x00, 0x50, // media that want CSR6<FD>
	0x00, 0x18, // media that want CSR6<TTM>
}

// sromImage returns the contents of the serial ROM, in format version 1: the only one
// that drivers for NT 3.x take, and that illumos takes without further demands.
func sromImage(cfg Config) [128]byte {
	var p [128]byte
	binary.LittleEndian.PutUint16(p[0:], cfg.SubsystemVendor)
	binary.LittleEndian.PutUint16(p[2:], cfg.SubsystemID)
	p[sromIDCheck] = idCheck(p[:sromIDCheck+2])
	p[sromVersion] = 1
	p[sromCount] = 1
	copy(p[sromMAC:], cfg.MAC[:])
	binary.LittleEndian.PutUint16(p[sromLeafAt:], sromLeaf)
	copy(p[sromLeaf:], sromLeafMII[:])
	sum := crc32.ChecksumIEEE(p[:sromChecksum])
	binary.LittleEndian.PutUint16(p[sromChecksum:], uint16(sum))
	return p
}

// idCheck returns the CRC-8 (polynomial 0x07, initially ones) over the nine words of
// the ID block, high bytes first, without the low byte of the last word, which is the
// check itself.
func idCheck(block []byte) byte {
	crc := byte(0xff)
	for i := range sromIDCheck + 1 {
		crc ^= block[i^1]
		for range 8 {
			carry := crc & 0x80
			crc <<= 1
			if carry != 0 {
				crc ^= 0x07
			}
		}
	}
	return crc
}

package tulip

import "encoding/binary"

// A set-up frame is 48 longwords of which only the low halves count (HRM, "Setup
// Frame"). An address takes three of them, two bytes in each.
const (
	setupLen         = 192 // bytes
	setupAddress     = 12  // bytes per address
	setupHashAddress = 156 // offset of the individual address in a hash set-up frame
)

// filterMirror is how CSR6 shows each FilterMode.
var filterMirror = [4]uint32{
	PerfectFilter:     0,
	HashPerfectFilter: csr6HP,
	InverseFilter:     csr6IF,
	HashOnlyFilter:    csr6HP | csr6HO,
}

// loadFilter takes the filter from a set-up frame with the given TDES1. One whose
// buffer is too short has no parts and changes nothing.
func (c *Chip) loadFilter(control uint32, parts [][]byte) {
	if len(parts) == 0 {
		return
	}
	var f Filter
	if control&tdes1FT1 != 0 {
		f.Mode |= 2
	}
	if control&tdes1FT0 != 0 {
		f.Mode |= 1
	}
	frame := parts[0]
	switch f.Mode {
	case PerfectFilter, InverseFilter:
		f.Entries = len(f.Perfect)
		for i := range f.Perfect {
			f.Perfect[i] = setupMAC(frame[i*setupAddress:])
		}
	case HashPerfectFilter:
		f.Entries = 1
		f.Perfect[0] = setupMAC(frame[setupHashAddress:])
		fallthrough
	case HashOnlyFilter:
		for i := range f.Hash {
			f.Hash[i] = binary.LittleEndian.Uint16(frame[i*4:])
		}
	}
	c.s.Filter = f
	c.s.CSR[6] = c.s.CSR[6]&^csr6Filter | filterMirror[f.Mode]
}

// setupMAC reads the address at the beginning of p.
func setupMAC(p []byte) [6]byte {
	return [6]byte{p[0], p[1], p[4], p[5], p[8], p[9]}
}

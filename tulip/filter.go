package tulip

import "hash/crc32"

// FilterMode is how destination addresses are judged: TDES1<FT1> and <FT0> of the last
// set-up frame (HRM, "Setup Frame").
type FilterMode uint8

const (
	PerfectFilter     FilterMode = iota // one of 16 addresses
	HashPerfectFilter                   // group addresses by hash, and one individual address
	InverseFilter                       // none of 16 addresses
	HashOnlyFilter                      // all addresses by hash
)

// Filter is the address filter as the last set-up frame left it. The zero value, before
// any, knows no address: the station address in the serial ROM means nothing to the
// chip.
type Filter struct {
	Mode    FilterMode
	Entries int         // valid entries of Perfect: 0, 1 or 16
	Perfect [16][6]byte // station addresses in wire order
	Hash    [32]uint16  // bit i of the table is bit i%16 of word i/16
}

var broadcast = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// filter judges the header in c.rx: whether the frame is let in, and whether its
// address alone is the reason. It is not when only the promiscuous or the receive-all
// mode lets it in, which RDES0<FF> tells the driver.
func (c *Chip) filter() (accepted, matched bool) {
	dst := [6]byte(c.rx.head[:6])
	mode := c.s.CSR[6]
	switch {
	case dst[0]&1 != 0 && mode&csr6PM != 0:
		matched = true
	default:
		matched = c.s.Filter.match(dst)
	}
	return matched || mode&(csr6PR|csr6RA) != 0, matched
}

// match judges an address. Broadcast passes in all modes but inverse filtering, listed
// or not: ReactOS sends a perfect table, in which it is listed, with the type bits of a
// hash table.
func (f *Filter) match(dst [6]byte) bool {
	switch {
	case f.Mode == InverseFilter:
		return !f.listed(dst)
	case dst == broadcast:
		return true
	case f.Mode == HashOnlyFilter, f.Mode == HashPerfectFilter && dst[0]&1 != 0:
		i := hashIndex(dst)
		return f.Hash[i/16]>>(i%16)&1 != 0
	}
	return f.listed(dst)
}

func (f *Filter) listed(dst [6]byte) bool {
	for i := range min(f.Entries, len(f.Perfect)) {
		if f.Perfect[i] == dst {
			return true
		}
	}
	return false
}

// hashIndex returns the bit of the hash table for an address: the low nine bits of the
// Ethernet CRC without its final inversion.
func hashIndex(addr [6]byte) uint32 {
	crc := ^uint32(0)
	for _, b := range addr {
		crc = crc32.IEEETable[byte(crc)^b] ^ crc>>8
	}
	return crc & 0x1ff
}

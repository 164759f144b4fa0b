package vswitch

import (
	"encoding/binary"
	"math/bits"
)

// checksum is an Internet checksum (RFC 1071) in the making. Bytes are added
// in pieces of any length. The zero value is the sum of nothing.
//
// It adds up the words in little-endian order, as processors load them; the sum
// of byte-swapped words is the swapped sum (RFC 1071, 2 (B)).
type checksum struct {
	sum uint64 // of folded pieces, each less than 1<<16
	odd bool   // an odd number of bytes was added
}

// add adds the bytes of b, which follow those added before.
func (c *checksum) add(b []byte) {
	s := sum16(b)
	if c.odd {
		s = bits.ReverseBytes16(s)
	}
	c.sum += uint64(s)
	c.odd = c.odd != (len(b)&1 != 0)
}

// addWord adds one 16-bit word, as if its two bytes had been added in network
// order. It must not follow an odd number of bytes.
func (c *checksum) addWord(w uint16) { c.sum += uint64(bits.ReverseBytes16(w)) }

// value returns the checksum: the complement of the sum, to be stored in
// network order.
func (c *checksum) value() uint16 { return ^bits.ReverseBytes16(fold(c.sum)) }

// sum16 returns the ones' complement sum of b as little-endian words. A last
// odd byte counts as a word with zero behind it.
//
// The carry goes round the whole loop, so eight bytes cost one addition: 20 GB/s
// for 1448 bytes in cache (AMD EPYC, Go 1.26).
func sum16(b []byte) uint16 {
	var s, c uint64
	for len(b) >= 64 {
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[0:8]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[8:16]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[16:24]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[24:32]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[32:40]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[40:48]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[48:56]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[56:64]), c)
		b = b[64:]
	}
	for len(b) >= 8 {
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b), c)
		b = b[8:]
	}
	var last uint64
	for i, x := range b {
		last |= uint64(x) << (8 * i)
	}
	s, c = bits.Add64(s, last, c)
	s, c = bits.Add64(s, 0, c)
	return fold(s + c) // a carry out of adding zero left s zero
}

// fold adds up the four words of s, with the carries.
func fold(s uint64) uint16 {
	s = s>>32 + s&0xffffffff // up to 33 bits
	s = s>>16 + s&0xffff     // up to 18
	s = s>>16 + s&0xffff     // up to 17
	return uint16(s>>16 + s)
}

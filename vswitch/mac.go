package vswitch

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
)

// MAC is an Ethernet address in the order of its bytes on the wire.
type MAC [6]byte

// ParseMAC reads an address of six pairs of hexadecimal digits with ":" or "-"
// between them, as Linux and Windows print it.
func ParseMAC(s string) (MAC, error) {
	var m MAC
	pairs := strings.Split(s, ":")
	if len(pairs) == 1 {
		pairs = strings.Split(s, "-")
	}
	if len(pairs) != len(m) {
		return MAC{}, badMAC(s)
	}
	for i, pair := range pairs {
		b, err := hex.DecodeString(pair)
		if err != nil || len(b) != 1 {
			return MAC{}, badMAC(s)
		}
		m[i] = b[0]
	}
	return m, nil
}

func badMAC(s string) error {
	return fmt.Errorf("vswitch: %q is not an Ethernet address like 00:15:5d:01:02:03", s)
}

// String prints the address in lower case with colons: "00:15:5d:01:02:03".
func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// IsMulticast reports whether m is a group address; broadcast is one.
func (m MAC) IsMulticast() bool { return m[0]&1 != 0 }

// A macKey is an address as the low 48 bits of a word, the first byte on the
// wire highest.
type macKey uint64

const (
	groupBit     macKey = 1 << 40        // I/G, the first bit on the wire: a group address
	reservedBase macKey = 0x0180c2000000 // to …0f: IEEE 802.1D-2004, table 7-10
	reservedMask macKey = 0xfffffffffff0
)

// addresses reads both addresses from an Ethernet header of at least 14 bytes.
func addresses(header []byte) (dst, src macKey) {
	dst = macKey(binary.BigEndian.Uint64(header[0:8]) >> 16)
	src = macKey(binary.BigEndian.Uint64(header[6:14]) >> 16)
	return dst, src
}

func (k macKey) mac() MAC {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(k))
	return MAC(b[2:])
}

func (m MAC) key() macKey {
	var b [8]byte
	copy(b[2:], m[:])
	return macKey(binary.BigEndian.Uint64(b[:]))
}

package main

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"
)

// sum16 is the Internet checksum by the letter of RFC 1071: the 16-bit one's complement sum, not complemented.
func sum16(parts ...[]byte) uint16 {
	sum := 0
	for i, b := range slices.Concat(parts...) {
		sum += int(b) << (8 * (1 - i%2))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// Offsets in the frames below.
const (
	ipAt   = deviceHeaderLen + 14
	tcpAt  = ipAt + 20
	tcpSum = 16 // in the TCP header
)

// tcpFrame is a segment with this payload behind a device header of zeros, with all checksums.
func tcpFrame(payload string) []byte {
	b := append(make([]byte, deviceHeaderLen),
		0x00, 0x15, 0x5d, 0x00, 0x00, 0x0c, 0x00, 0x15, 0x5d, 0x00, 0x00, 0x0b, 0x08, 0x00,
		0x45, 0, 0, 0, 0x12, 0x34, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
		0x14, 0x51, 0xc3, 0x50, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 0x01, 0xf6, 0, 0, 0, 0)
	b = append(b, payload...)
	binary.BigEndian.PutUint16(b[ipAt+2:], uint16(len(b)-ipAt))
	binary.BigEndian.PutUint16(b[ipAt+10:], ^sum16(b[ipAt:tcpAt]))
	binary.BigEndian.PutUint16(b[tcpAt+tcpSum:], ^sum16(pseudo(b), b[tcpAt:]))
	return b
}

// pseudo is the pseudo-header of tcpFrame.
func pseudo(b []byte) []byte {
	return binary.BigEndian.AppendUint16(append(slices.Clone(b[ipAt+12:tcpAt]), 0, 6), uint16(len(b)-tcpAt))
}

// partial leaves the checksum to the guest.
func partial(b []byte) []byte {
	b[0] = needsChecksum
	binary.NativeEndian.PutUint16(b[6:], tcpAt-deviceHeaderLen)
	binary.NativeEndian.PutUint16(b[8:], tcpSum)
	binary.BigEndian.PutUint16(b[tcpAt+tcpSum:], sum16(pseudo(b)))
	return b
}

// several makes it a frame for several.
func several(b []byte, kind byte) []byte {
	b = partial(b)
	b[1] = kind
	binary.NativeEndian.PutUint16(b[4:], 1448)
	return b
}

// flip changes one byte.
func flip(b []byte, at int) []byte {
	b[at] ^= 0x10
	return b
}

// flags changes the flags of the device header.
func flags(b []byte, flags byte) []byte {
	b[0] = flags
	return b
}

// udpFrame is a datagram "hi" whose checksum is this.
func udpFrame(sum uint16) []byte {
	b := tcpFrame("")[:tcpAt]
	b[ipAt+9] = 17
	b = append(b, 0, 67, 0, 68, 0, 10, byte(sum>>8), byte(sum), 'h', 'i')
	binary.BigEndian.PutUint16(b[ipAt+2:], uint16(len(b)-ipAt))
	binary.BigEndian.PutUint16(b[ipAt+10:], 0)
	binary.BigEndian.PutUint16(b[ipAt+10:], ^sum16(b[ipAt:tcpAt]))
	return b
}

func TestJudge(t *testing.T) {
	long := strings.Repeat("polder ", 1000)
	for _, c := range []struct {
		name  string
		frame []byte
		want  string // of the error; "": the frame is good
	}{
		{"complete", tcpFrame("hello"), ""},
		{"complete and padded", append(tcpFrame(""), make([]byte, 6)...), ""},
		{"partial", partial(tcpFrame("hello")), ""},
		{"for several", several(tcpFrame(long), gsoTCPv4), ""},
		{"for several, with ECN", several(tcpFrame(long), gsoTCPv4|gsoECN), ""},
		{"datagram without checksum", udpFrame(0), ""},
		{"ARP", append(make([]byte, deviceHeaderLen+12), 0x08, 0x06, 0, 1), ""},

		{"short", make([]byte, deviceHeaderLen+13), "23 bytes"},
		{"header of IP changed", flip(tcpFrame("hello"), ipAt+8), "checksum of the IPv4 header"},
		{"payload changed", flip(tcpFrame("hello"), tcpAt+22), "checksum of TCP"},
		{"length of IP beyond the frame", tcpFrame("hello")[:tcpAt+22], "malformed IPv4"},
		{"partial, sum of another pseudo-header", flip(partial(tcpFrame("hello")), tcpAt+tcpSum), "checksum of TCP"},
		{"partial, beyond the frame", partial(tcpFrame("hello"))[:tcpAt+tcpSum+1], "checksum wanted at 34+16 of 51 bytes"},
		{"for several, of another protocol", several(tcpFrame(long), gsoTCPv6), "gso_type 4"},
		{"for several, not partial", flags(several(tcpFrame(long), gsoTCPv4), 0), "flags 0"},
		{"larger than the MTU", tcpFrame(long), "packet of 7040 bytes"},
		{"datagram with a wrong checksum", udpFrame(0x1234), "checksum of UDP"},
	} {
		var tally tally
		err := tally.judge(c.frame)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v, want none", c.name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		case (tally.bad == 1) != (c.want != "") || tally.frames != 1:
			t.Errorf("%s: counted as %+v", c.name, tally)
		}
	}
}

package main

import (
	"encoding/binary"
	"errors"
	"fmt"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// The device's header, which a packet socket shows as virtio lays it out (virtio 1.3, 5.1.6 "Device Operation"):
// flags, gso_type, hdr_len, gso_size, csum_start, csum_offset.
const (
	deviceHeaderLen = 10

	needsChecksum = 1 // of flags: the sum from csum_start on is to be completed at csum_offset behind it

	gsoTCPv4 = 1
	gsoTCPv6 = 4
	gsoUDP   = 5
	gsoECN   = 0x80 // besides one of the others
)

// maxPacket is the MTU, in bytes.
const maxPacket = 1500

// tally counts what was judged.
type tally struct {
	frames, tcp, udp, partial, gso4, gso6, bad int
}

// judge counts a frame behind its device header, and says what is wrong with it. It completes the frame's checksum
// if that is left to the guest.
func (t *tally) judge(b []byte) error {
	t.frames++
	err := t.parse(b)
	if err != nil {
		t.bad++
	}
	return err
}

func (t *tally) parse(b []byte) error {
	if len(b) < deviceHeaderLen+header.EthernetMinimumSize {
		return fmt.Errorf("%d bytes", len(b))
	}
	order := binary.NativeEndian
	flags, gso, gsoSize := b[0], b[1]&^gsoECN, order.Uint16(b[4:])
	start, offset := int(order.Uint16(b[6:])), int(order.Uint16(b[8:]))
	frame := b[deviceHeaderLen:]

	if flags&needsChecksum != 0 {
		t.partial++
		at := start + offset
		if at+2 > len(frame) {
			return fmt.Errorf("checksum wanted at %d+%d of %d bytes", start, offset, len(frame))
		}
		sum := ^checksum.Checksum(frame[start:], 0)
		if sum == 0 {
			sum = 0xffff // the same number, which UDP does not take for no checksum (RFC 768)
		}
		binary.BigEndian.PutUint16(frame[at:], sum)
	}
	switch gso {
	case gsoTCPv4:
		t.gso4++
	case gsoTCPv6:
		t.gso6++
	}
	if gso != 0 && (flags&needsChecksum == 0 || gsoSize == 0) {
		return fmt.Errorf("flags %#x and pieces of %d bytes in a frame for several", flags, gsoSize)
	}

	packet := frame[header.EthernetMinimumSize:]
	if gso == 0 && len(packet) > maxPacket {
		return fmt.Errorf("packet of %d bytes", len(packet))
	}
	switch header.Ethernet(frame).Type() {
	case header.IPv4ProtocolNumber:
		return t.ipv4(header.IPv4(packet), gso)
	case header.IPv6ProtocolNumber:
		return t.ipv6(header.IPv6(packet), gso)
	}
	return nil // of a protocol without checksums
}

func (t *tally) ipv4(h header.IPv4, gso byte) error {
	switch {
	case !h.IsValid(len(h)):
		return errors.New("malformed IPv4 header")
	case !h.IsChecksumValid():
		return errors.New("checksum of the IPv4 header")
	case h.More() || h.FragmentOffset() != 0:
		return errors.New("fragment of IPv4")
	}
	segment := h[h.HeaderLength():h.TotalLength()]
	if h.TransportProtocol() == header.ICMPv4ProtocolNumber {
		if len(segment) < header.ICMPv4MinimumSize || checksum.Checksum(segment, 0) != 0xffff {
			return errors.New("checksum of ICMP")
		}
		return nil
	}
	return t.transport(h.TransportProtocol(), h.SourceAddress(), h.DestinationAddress(), segment, gso, gsoTCPv4)
}

func (t *tally) ipv6(h header.IPv6, gso byte) error {
	if !h.IsValid(len(h)) {
		return errors.New("malformed IPv6 header")
	}
	segment := h[header.IPv6MinimumSize:][:h.PayloadLength()]
	protocol := tcpip.TransportProtocolNumber(h.NextHeader()) // of an extension header too, which is judged no further
	src, dst := h.SourceAddress(), h.DestinationAddress()
	if protocol == header.ICMPv6ProtocolNumber {
		if len(segment) < header.ICMPv6MinimumSize ||
			checksum.Checksum(segment, header.PseudoHeaderChecksum(header.ICMPv6ProtocolNumber, src, dst, uint16(len(segment)))) != 0xffff {
			return errors.New("checksum of ICMPv6")
		}
		return nil
	}
	return t.transport(protocol, src, dst, segment, gso, gsoTCPv6)
}

// transport judges what an IP packet carries. tcpGSO is the gso_type that TCP over this IP has.
func (t *tally) transport(protocol tcpip.TransportProtocolNumber, src, dst tcpip.Address, segment []byte, gso, tcpGSO byte) error {
	wantGSO := byte(0)
	switch protocol {
	case header.TCPProtocolNumber:
		t.tcp++
		h := header.TCP(segment)
		if len(h) < header.TCPMinimumSize || int(h.DataOffset()) < header.TCPMinimumSize || int(h.DataOffset()) > len(h) {
			return errors.New("malformed TCP header")
		}
		payload := segment[h.DataOffset():]
		if !h.IsChecksumValid(src, dst, checksum.Checksum(payload, 0), uint16(len(payload))) {
			return errors.New("checksum of TCP")
		}
		wantGSO = tcpGSO
	case header.UDPProtocolNumber:
		t.udp++
		h := header.UDP(segment)
		if len(h) < header.UDPMinimumSize || int(h.Length()) != len(h) {
			return errors.New("malformed UDP header")
		}
		none := h.Checksum() == 0 && src.Len() == header.IPv4AddressSize // as RFC 768 allows
		if !none && !h.IsChecksumValid(src, dst, checksum.Checksum(h.Payload(), 0)) {
			return errors.New("checksum of UDP")
		}
		wantGSO = gsoUDP
	}
	if gso != 0 && gso != wantGSO {
		return fmt.Errorf("gso_type %d in a frame of protocol %d", gso, protocol)
	}
	return nil
}

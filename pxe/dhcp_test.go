package pxe

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"polder/vswitch"
)

// opt is one DHCP option as it lies on the wire.
func opt(code byte, value ...byte) []byte {
	return append([]byte{code, byte(len(value))}, value...)
}

func optText(code byte, s string) []byte { return opt(code, []byte(s)...) }

// bootp builds a request by hand, so that the tests do not share the codec with the service.
type bootp struct {
	flags          uint16
	ciaddr, giaddr string
	chaddr         vswitch.MAC
	vend           []byte // after the header, with cookie and END if there are any
	size           int    // padded to
}

func (m bootp) bytes() []byte {
	b := make([]byte, bootpVend)
	b[0], b[1], b[2] = 1, 1, 6
	copy(b[4:], "xid!")
	binary.BigEndian.PutUint16(b[10:], m.flags)
	for at, a := range map[int]string{12: m.ciaddr, 24: m.giaddr} {
		if a != "" {
			copy(b[at:], netip.MustParseAddr(a).AsSlice())
		}
	}
	copy(b[28:], m.chaddr[:])
	b = append(b, m.vend...)
	return append(b, make([]byte, max(0, m.size-len(b)))...)
}

func vend(options ...[]byte) []byte {
	return slices.Concat(magicCookie, slices.Concat(options...), []byte{255})
}

// dhcpReply is a reply, decoded by hand.
type dhcpReply struct {
	udp
	op, hops       byte
	xid            string
	flags          uint16
	ciaddr, yiaddr netip.Addr
	siaddr, giaddr netip.Addr
	chaddr         vswitch.MAC
	sname, file    string
	opts           map[byte][]byte
	size           int
}

func parseReply(t testing.TB, d udp) dhcpReply {
	t.Helper()
	b := d.payload
	if len(b) < 300 {
		t.Fatalf("a reply of %d bytes: old clients drop what is below 300", len(b))
	}
	addr := func(at int) netip.Addr { return netip.AddrFrom4([4]byte(b[at:])) }
	text := func(b []byte) string { s, _, _ := strings.Cut(string(b), "\x00"); return s }
	r := dhcpReply{
		udp: d, op: b[0], hops: b[3], xid: string(b[4:8]), flags: binary.BigEndian.Uint16(b[10:]),
		ciaddr: addr(12), yiaddr: addr(16), siaddr: addr(20), giaddr: addr(24),
		chaddr: vswitch.MAC(b[28:]), sname: text(b[44:108]), file: text(b[108:236]),
		opts: make(map[byte][]byte), size: len(b),
	}
	if !bytes.Equal(b[236:240], magicCookie) {
		t.Fatalf("no magic cookie: % x", b[236:240])
	}
	for b = b[240:]; ; {
		if len(b) == 0 {
			t.Fatal("no END option")
		}
		code := b[0]
		if code == 255 {
			break
		}
		if code == 0 {
			b = b[1:]
			continue
		}
		n := int(b[1])
		r.opts[code] = append(r.opts[code], b[2:2+n]...)
		b = b[2+n:]
	}
	if r.op != 2 {
		t.Fatalf("op %d: no reply", r.op)
	}
	return r
}

// dhcp sends a message as a client without an address and returns the reply.
func (g *machine) dhcp(m bootp) dhcpReply {
	g.t.Helper()
	g.sendDHCP(m)
	r := parseReply(g.t, g.recvUDP())
	if r.xid != "xid!" {
		g.t.Fatalf("not the reply to the request: transaction %q", r.xid)
	}
	return r
}

func (g *machine) sendDHCP(m bootp) {
	if m.chaddr == (vswitch.MAC{}) {
		m.chaddr = g.mac
	}
	src, dst, dstMAC := netip.IPv4Unspecified(), netip.MustParseAddr("255.255.255.255"), broadcast
	if m.ciaddr != "" {
		src, dst, dstMAC = netip.MustParseAddr(m.ciaddr), testServer, serverMAC
	}
	sport := uint16(68)
	if m.giaddr != "" {
		src, dst, dstMAC, sport = netip.MustParseAddr(m.giaddr), testServer, serverMAC, 67
	}
	g.send(udpFrame(g.mac, dstMAC, netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, 67), m.bytes()))
}

// What real clients send in a DISCOVER, after option 53: captures of iPXE 1.0.0+git-20190125 and OVMF,
// and what the specifications and other firmware's sources say of the rest.
var (
	uuidA = []byte{0, 0x44, 0x45, 0x4c, 0x4c, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}

	bootROMs = []struct {
		name    string
		flags   uint16
		size    int
		options [][]byte
		files   fstest.MapFS

		file        string
		vendorClass string // option 60 of the reply
		skip        bool   // option 43
		ipxe        bool   // option 175
	}{
		{
			name: "iPXE on a BIOS, no files", size: 400,
			options: [][]byte{
				opt(57, 5, 192), opt(93, 0, 0), opt(94, 1, 2, 1), optText(60, "PXEClient:Arch:00000:UNDI:002001"), optText(77, "iPXE"),
				opt(55, 1, 3, 6, 7, 12, 15, 17, 43, 60, 66, 67, 119, 128, 175, 203),
				opt(175, 0xb1, 5, 1, 0x10, 0x11, 0, 9, 24, 1, 1, 34, 1, 1), opt(61, 1, 0, 0x15, 0x5d, 0, 0, 2), opt(97, make([]byte, 17)...),
			},
			file: "default.ipxe", ipxe: true,
		},
		{
			name: "iPXE on a BIOS, Debian's files", size: 400,
			options: [][]byte{opt(93, 0, 0), optText(60, "PXEClient:Arch:00000:UNDI:002001"), optText(77, "iPXE"), opt(97, uuidA...)},
			files:   fstest.MapFS{"pxelinux.0": {}, "debian-installer/amd64/linux": {}},
			file:    "pxelinux.0", ipxe: true,
		},
		{
			name: "iPXE on UEFI, user class as a list", size: 410,
			options: [][]byte{opt(93, 0, 7), optText(60, "PXEClient:Arch:00007:UNDI:003010"), optText(77, "\x04iPXE")},
			files:   fstest.MapFS{"snponly.efi": {}, "undionly.kpxe": {}},
			file:    "default.ipxe", ipxe: true,
		},
		{
			name: "SeaBIOS with an iPXE ROM never loads iPXE again", size: 400,
			options: [][]byte{opt(93, 0, 0), optText(60, "PXEClient:Arch:00000:UNDI:002001"), optText(77, "iPXE")},
			files:   fstest.MapFS{"undionly.kpxe": {}, "boot.ipxe": {}},
			file:    "boot.ipxe", ipxe: true,
		},
		{
			name: "Intel UNDI, PXE 2.1", size: 548, flags: 0x8000,
			options: [][]byte{opt(55, 1, 2, 3, 4, 5, 6, 11, 12, 13, 15, 16, 17, 18, 22, 23, 28, 40, 41, 42, 43, 50, 51, 54, 58, 59, 60, 66, 67, 128, 129, 130, 131, 132, 133, 134, 135),
				opt(57, 4, 236), opt(97, uuidA...), opt(93, 0, 0), opt(94, 1, 2, 1), optText(60, "PXEClient:Arch:00000:UNDI:002001")},
			files: fstest.MapFS{"pxelinux.0": {}, "undionly.kpxe": {}},
			file:  "pxelinux.0", vendorClass: "PXEClient", skip: true,
		},
		{
			name: "Intel UNDI, nothing to boot", size: 548, flags: 0x8000,
			options:     [][]byte{opt(97, uuidA...), opt(93, 0, 0), optText(60, "PXEClient:Arch:00000:UNDI:002001")},
			vendorClass: "PXEClient", skip: true,
		},
		{
			name: "EDK2 PXE", size: 347, flags: 0x8000,
			options: [][]byte{opt(57, 5, 192), opt(55, 1, 2, 3, 4, 5, 6, 12, 13, 15, 17, 18, 22, 23, 28, 40, 41, 42, 43, 50, 51, 54, 58, 59, 60, 66, 67, 97, 128, 129, 130, 131, 132, 133, 134, 135),
				opt(97, uuidA...), opt(94, 1, 3, 0), opt(93, 0, 7), optText(60, "PXEClient:Arch:00007:UNDI:003000")},
			files: fstest.MapFS{"EFI/BOOT/BOOTX64.EFI": {}, "pxelinux.0": {}},
			file:  "EFI/BOOT/bootx64.efi", vendorClass: "PXEClient", skip: true,
		},
		{
			name: "EDK2 HTTP boot", size: 347, flags: 0x8000,
			options: [][]byte{opt(94, 1, 3, 0), opt(93, 0, 16), optText(60, "HTTPClient:Arch:00016:UNDI:003000")},
			files:   fstest.MapFS{"bootx64.efi": {}},
			file:    "http://10.21.140.1/bootx64.efi", vendorClass: "HTTPClient",
		},
		{
			name: "Windows' boot manager", size: 300,
			options: [][]byte{opt(97, uuidA...), opt(93, 0, 0), optText(60, "PXEClient"), opt(250, 12, 1, 1)},
			files:   fstest.MapFS{"pxelinux.0": {}},
			file:    "pxelinux.0", vendorClass: "PXEClient", skip: true,
		},
		{
			name: "U-Boot on ARM64", size: 300,
			options: [][]byte{opt(93, 0, 11), optText(60, "U-Boot.armv8")},
			files:   fstest.MapFS{"grubaa64.efi": {}},
			file:    "grubaa64.efi",
		},
		{
			name: "udhcpc in a running guest", size: 300,
			options: [][]byte{opt(57, 2, 64), opt(55, 1, 3, 6, 12, 15, 28, 42), optText(60, "udhcp 1.35.0"), optText(12, "debian")},
		},
	}
)

// TestBootROMs runs the exchange of each client and reads the replies as the client does.
func TestBootROMs(t *testing.T) {
	for _, rom := range bootROMs {
		t.Run(rom.name, func(t *testing.T) {
			cfg := testConfig()
			if rom.files != nil {
				cfg.Files = rom.files
			}
			w := newWorld(t, cfg)
			g := w.join("guest", guestMAC, netip.IPv4Unspecified())

			discover := bootp{flags: rom.flags, size: rom.size, vend: vend(append([][]byte{opt(53, 1)}, rom.options...)...)}
			offer := g.dhcp(discover)
			check := func(r dhcpReply, typ byte) {
				t.Helper()
				want := map[byte]string{
					53: string(typ), 54: "\x0a\x15\x8c\x01", 1: "\xff\xff\xff\x00",
					51: "\x00\x00\x0e\x10", 58: "\x00\x00\x07\x08", 59: "\x00\x00\x0c\x4e",
				}
				if rom.file != "" {
					want[66], want[67] = "10.21.140.1", rom.file
				}
				if rom.vendorClass != "" {
					want[60] = rom.vendorClass
				}
				if rom.skip {
					want[43] = "\x06\x01\x08\xff"
				}
				if rom.ipxe {
					want[175] = "\xb0\x01\x01"
				}
				for _, o := range rom.options {
					if o[0] == 97 || o[0] == 61 {
						want[o[0]] = string(o[2:])
					}
				}
				for code, v := range r.opts {
					if string(v) != want[code] {
						t.Errorf("option %d is %q, want %q", code, v, want[code])
					}
					delete(want, code)
				}
				for code, v := range want {
					t.Errorf("option %d is missing, want %q", code, v)
				}
				if r.file != rom.file || r.siaddr != testServer {
					t.Errorf("header: file %q, siaddr %v; want %q", r.file, r.siaddr, rom.file)
				}
				if (r.sname != "") != (rom.file != "") {
					t.Errorf("header: sname %q", r.sname)
				}
				if r.chaddr != guestMAC || r.flags != rom.flags {
					t.Errorf("chaddr %v, flags %#x", r.chaddr, r.flags)
				}
				toMAC, toAddr := guestMAC, r.yiaddr
				if rom.flags != 0 {
					toMAC, toAddr = broadcast, netip.MustParseAddr("255.255.255.255")
				}
				if r.dstMAC != toMAC || r.dst != netip.AddrPortFrom(toAddr, 68) {
					t.Errorf("sent to %v %v, want %v %v", r.dstMAC, r.dst, toMAC, toAddr)
				}
				if r.yiaddr.String() != "10.21.140.100" {
					t.Errorf("address %v", r.yiaddr)
				}
			}
			check(offer, 2)
			ask := append([][]byte{opt(53, 3), opt(54, offer.opts[54]...), opt(50, offer.yiaddr.AsSlice()...)}, rom.options...)
			check(g.dhcp(bootp{flags: rom.flags, size: rom.size, vend: vend(ask...)}), 5)

			if e := w.event(EventDiscover); e.Client.MAC != guestMAC {
				t.Errorf("event %+v", e)
			}
			if e := w.event(EventAck); e.Detail != rom.file || e.Client.Addr != offer.yiaddr || e.Elapsed <= 0 {
				t.Errorf("event %+v", e)
			}
			if l := w.server.Leases(); len(l) != 1 || l[0].Addr != offer.yiaddr || l[0].Client.MAC != guestMAC {
				t.Errorf("leases %+v", l)
			}
		})
	}
}

// TestBOOTP proves RFC 951's exchange: no cookie, no END, no options of DHCP in the reply.
func TestBOOTP(t *testing.T) {
	for _, c := range []struct {
		name string
		m    bootp
	}{
		{"empty vendor area", bootp{size: 300}},
		{"magic cookie without END", bootp{vend: slices.Concat(magicCookie, opt(12, 'o', 'l', 'd')), size: 300}},
		{"header alone", bootp{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := testConfig()
			cfg.Files = fstest.MapFS{"pxelinux.0": {}}
			w := newWorld(t, cfg)
			g := w.join("guest", guestMAC, netip.IPv4Unspecified())
			r := g.dhcp(c.m)
			if r.size != 300 || r.yiaddr.String() != "10.21.140.100" || r.siaddr != testServer || r.file != "pxelinux.0" {
				t.Errorf("reply %+v", r)
			}
			if len(r.opts) != 1 || string(r.opts[1]) != "\xff\xff\xff\x00" {
				t.Errorf("options %v, want the subnet mask alone", r.opts)
			}
			if l := w.server.Leases(); len(l) != 1 || !l[0].Expires.IsZero() {
				t.Errorf("leases %+v, want one without end", l)
			}
		})
	}
}

// TestRequest has the cases of RFC 2131, section 4.3.2.
func TestRequest(t *testing.T) {
	const ack, nak = 5, 6
	server := opt(54, 10, 21, 140, 1)
	for _, c := range []struct {
		name      string
		m         bootp
		want      byte // 0: silence
		yiaddr    string
		to        string
		toAllMACs bool
	}{
		{"selecting us", bootp{vend: vend(opt(53, 3), server, opt(50, 10, 21, 140, 100))}, ack, "10.21.140.100", "10.21.140.100", false},
		{"selecting another server", bootp{vend: vend(opt(53, 3), opt(54, 10, 21, 140, 9), opt(50, 10, 21, 140, 100))}, 0, "", "", false},
		{"selecting another's address", bootp{vend: vend(opt(53, 3), server, opt(50, 10, 21, 140, 150))}, nak, "0.0.0.0", "255.255.255.255", true},
		{"selecting our own address", bootp{vend: vend(opt(53, 3), server, opt(50, 10, 21, 140, 1))}, nak, "0.0.0.0", "255.255.255.255", true},
		{"init-reboot with a free address", bootp{vend: vend(opt(53, 3), opt(50, 10, 21, 140, 120))}, ack, "10.21.140.120", "10.21.140.120", false},
		{"init-reboot on the wrong network", bootp{vend: vend(opt(53, 3), opt(50, 192, 168, 1, 2))}, nak, "0.0.0.0", "255.255.255.255", true},
		{"renewing", bootp{ciaddr: "10.21.140.100", vend: vend(opt(53, 3))}, ack, "10.21.140.100", "10.21.140.100", false},
		{"renewing with the broadcast flag", bootp{flags: 0x8000, ciaddr: "10.21.140.100", vend: vend(opt(53, 3))}, ack, "10.21.140.100", "10.21.140.100", false},
		{"renewing another's address", bootp{ciaddr: "10.21.140.150", vend: vend(opt(53, 3))}, nak, "0.0.0.0", "255.255.255.255", true},
		{"asking for nothing", bootp{vend: vend(opt(53, 3))}, nak, "0.0.0.0", "255.255.255.255", true},
		{"informing", bootp{ciaddr: "10.21.140.7", vend: vend(opt(53, 8))}, ack, "0.0.0.0", "10.21.140.7", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, testConfig())
			g := w.join("guest", guestMAC, netip.IPv4Unspecified())
			other := w.join("other", vswitch.MAC{2, 9}, netip.IPv4Unspecified())
			if r := other.dhcp(bootp{vend: vend(opt(53, 3), opt(50, 10, 21, 140, 150))}); r.opts[53][0] != ack {
				t.Fatalf("the other guest got no lease: %v", r.opts)
			}
			if r := g.dhcp(bootp{vend: vend(opt(53, 1))}); r.yiaddr.String() != "10.21.140.100" {
				t.Fatalf("offered %v", r.yiaddr)
			}
			g.sendDHCP(c.m)
			if c.want == 0 {
				// What comes next is the answer to this.
				if r := g.dhcp(bootp{vend: vend(opt(53, 1))}); r.opts[53][0] != 2 {
					t.Errorf("answered with type %d, want silence", r.opts[53][0])
				}
				return
			}
			r := parseReply(t, g.recvUDP())
			if r.opts[53][0] != c.want || r.yiaddr.String() != c.yiaddr || r.dst.Addr().String() != c.to || (r.dstMAC == broadcast) != c.toAllMACs {
				t.Errorf("type %d, yiaddr %v, to %v %v", r.opts[53][0], r.yiaddr, r.dst, r.dstMAC)
			}
			if c.want == nak && (len(r.opts) != 3 || r.siaddr.IsValid() && !r.siaddr.IsUnspecified()) {
				t.Errorf("a NAK with more than it may have: %v", r.opts)
			}
			if _, leased := r.opts[51]; leased && c.name == "informing" {
				t.Error("an INFORM got a lease time")
			}
		})
	}
}

// TestRefused lists the messages that get no answer.
func TestRefused(t *testing.T) {
	sound := bootp{vend: vend(opt(53, 1))}
	edit := func(f func(b []byte) []byte) []byte { m := sound; m.chaddr = guestMAC; return f(m.bytes()) }
	for _, c := range []struct {
		name    string
		payload []byte
	}{
		{"empty", nil},
		{"short header", make([]byte, 235)},
		{"a reply", edit(func(b []byte) []byte { b[0] = 2; return b })},
		{"not Ethernet", edit(func(b []byte) []byte { b[1] = 6; return b })},
		{"address of 16 bytes", edit(func(b []byte) []byte { b[2] = 16; return b })},
		{"another's address", edit(func(b []byte) []byte { b[28+5]++; return b })},
		{"option longer than the message", edit(func(b []byte) []byte { return append(b[:len(b)-1], 60, 200, 'P') })},
		{"unknown type", edit(func(b []byte) []byte { b[242] = 77; return b })},
		{"relay of another subnet", edit(func(b []byte) []byte { copy(b[24:], []byte{192, 168, 1, 1}); return b })},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, testConfig())
			g := w.join("guest", guestMAC, netip.IPv4Unspecified())
			all := netip.MustParseAddr("255.255.255.255")
			g.send(udpFrame(g.mac, broadcast, netip.AddrPortFrom(g.addr, 68), netip.AddrPortFrom(all, 67), c.payload))
			m := sound
			m.vend = vend(opt(53, 1), opt(61, 'm', 'a', 'r', 'k'))
			if r := g.dhcp(m); string(r.opts[61]) != "mark" {
				t.Errorf("answered: %v", r.opts)
			}
			if len(w.server.Leases()) != 0 {
				t.Error("there is a lease")
			}
		})
	}
}

func TestRelay(t *testing.T) {
	w := newWorld(t, testConfig())
	relay := w.join("relay", vswitch.MAC{2, 0xee}, netip.MustParseAddr("10.21.140.2"))
	info := opt(82, 1, 4, 'e', 't', 'h', '0', 2, 2, 0xab, 0xcd)
	m := bootp{giaddr: "10.21.140.2", chaddr: guestMAC, vend: vend(opt(53, 1), info)}
	r := relay.dhcp(m)
	if r.dstMAC != relay.mac || r.dst.String() != "10.21.140.2:67" || r.giaddr.String() != "10.21.140.2" || r.chaddr != guestMAC {
		t.Errorf("sent to %v %v for %v", r.dstMAC, r.dst, r.chaddr)
	}
	if !bytes.Equal(r.opts[82], info[2:]) {
		t.Errorf("relay agent information % x, want it back as it came", r.opts[82])
	}
	m.vend = vend(opt(53, 3), opt(50, 1, 2, 3, 4))
	if r := relay.dhcp(m); r.opts[53][0] != 6 || r.flags&0x8000 == 0 {
		t.Errorf("type %d, flags %#x; want a NAK that the relay broadcasts", r.opts[53][0], r.flags)
	}
}

// TestBootServer proves port 4011, where a client that has its address asks what to boot.
func TestBootServer(t *testing.T) {
	cfg := testConfig()
	cfg.Files = fstest.MapFS{"bootx64.efi": {}}
	w := newWorld(t, cfg)
	g := w.join("guest", guestMAC, guestAddr)
	m := bootp{ciaddr: guestAddr.String(), chaddr: guestMAC, vend: vend(opt(53, 3), opt(93, 0, 7), opt(97, uuidA...), optText(60, "PXEClient:Arch:00007:UNDI:003000"))}
	g.sendUDP(4011, 4011, m.bytes())
	r := parseReply(t, g.recvUDP())
	if r.src.Port() != 4011 || r.dst != netip.AddrPortFrom(guestAddr, 4011) || r.dstMAC != guestMAC {
		t.Errorf("%v to %v", r.src, r.dst)
	}
	if r.opts[53][0] != 5 || r.file != "bootx64.efi" || string(r.opts[60]) != "PXEClient" || !bytes.Equal(r.opts[97], uuidA) || r.yiaddr.String() != "0.0.0.0" {
		t.Errorf("reply %+v", r)
	}
	if _, leased := r.opts[51]; leased {
		t.Error("a boot server gives no leases")
	}
}

func TestDecline(t *testing.T) {
	w := newWorld(t, testConfig())
	g := w.join("guest", guestMAC, netip.IPv4Unspecified())
	first := g.dhcp(bootp{vend: vend(opt(53, 3), opt(50, 10, 21, 140, 100))})
	g.sendDHCP(bootp{vend: vend(opt(53, 4), opt(54, 10, 21, 140, 1), opt(50, first.yiaddr.AsSlice()...))})
	w.event(EventDecline)
	if r := g.dhcp(bootp{vend: vend(opt(53, 1), opt(50, first.yiaddr.AsSlice()...))}); r.yiaddr == first.yiaddr {
		t.Errorf("%v was offered again", r.yiaddr)
	}
}

func TestRelease(t *testing.T) {
	w := newWorld(t, testConfig())
	g := w.join("guest", guestMAC, netip.IPv4Unspecified())
	g.dhcp(bootp{vend: vend(opt(53, 3), opt(50, 10, 21, 140, 100))})
	g.sendDHCP(bootp{ciaddr: "10.21.140.100", vend: vend(opt(53, 7), opt(54, 10, 21, 140, 1))})
	w.event(EventRelease)
	if l := w.server.Leases(); len(l) != 0 {
		t.Errorf("leases %v", l)
	}
}

func TestReservations(t *testing.T) {
	cfg := testConfig()
	cfg.Router, cfg.DNS = netip.MustParseAddr("10.21.140.254"), []netip.Addr{netip.MustParseAddr("9.9.9.9"), testServer}
	cfg.Reservations = []Reservation{
		{MAC: guestMAC, Addr: netip.MustParseAddr("10.21.140.10"), Name: "node-a"},
		{UUID: UUID(uuidA[1:]), Addr: netip.MustParseAddr("10.21.140.100"), Name: "node-b"},
	}
	w := newWorld(t, cfg)
	a := w.join("a", guestMAC, netip.IPv4Unspecified())
	b := w.join("b", vswitch.MAC{2, 1}, netip.IPv4Unspecified())
	c := w.join("c", vswitch.MAC{2, 2}, netip.IPv4Unspecified())
	d := w.join("d", vswitch.MAC{2, 3}, netip.IPv4Unspecified())
	for _, x := range []struct {
		g    *machine
		m    bootp
		addr string
		name string
	}{
		{a, bootp{vend: vend(opt(53, 1))}, "10.21.140.10", "node-a"},
		{b, bootp{vend: vend(opt(53, 1), opt(97, uuidA...))}, "10.21.140.100", "node-b"},
		{c, bootp{vend: vend(opt(53, 1), opt(50, 10, 21, 140, 100))}, "10.21.140.101", ""},
		{d, bootp{vend: vend(opt(53, 1), opt(97, make([]byte, 17)...))}, "10.21.140.102", ""},
	} {
		r := x.g.dhcp(x.m)
		if r.yiaddr.String() != x.addr || string(r.opts[12]) != x.name {
			t.Errorf("%v: address %v, name %q; want %v, %q", x.g.mac, r.yiaddr, r.opts[12], x.addr, x.name)
		}
		if hex.EncodeToString(r.opts[3]) != "0a158cfe" || hex.EncodeToString(r.opts[6]) != "09090909"+"0a158c01" {
			t.Errorf("router % x, DNS % x", r.opts[3], r.opts[6])
		}
	}
}

// TestExhausted proves that a full pool is an event and silence, not a wrong answer.
func TestExhausted(t *testing.T) {
	cfg := testConfig()
	cfg.PoolLast = cfg.PoolFirst
	w := newWorld(t, cfg)
	a := w.join("a", vswitch.MAC{2, 1}, netip.IPv4Unspecified())
	b := w.join("b", vswitch.MAC{2, 2}, netip.IPv4Unspecified())
	a.dhcp(bootp{vend: vend(opt(53, 3), opt(50, 10, 21, 140, 100))})
	b.sendDHCP(bootp{vend: vend(opt(53, 1))})
	if e := w.event(EventExhaust); e.Client.MAC != b.mac {
		t.Errorf("event %+v", e)
	}
}

// TestLongFileName proves that a name too long for the header is in option 67.
func TestLongFileName(t *testing.T) {
	long := "http://10.21.140.1/" + strings.Repeat("x", 120)
	cfg := testConfig()
	cfg.Boot = []BootRule{{File: long}}
	w := newWorld(t, cfg)
	g := w.join("guest", guestMAC, netip.IPv4Unspecified())
	if r := g.dhcp(bootp{vend: vend(opt(53, 1))}); r.file != "" || string(r.opts[67]) != long {
		t.Errorf("file %q, option 67 %q", r.file, r.opts[67])
	}
}

// TestWholeBoot is a guest's way from power-on to the last block, with what its timeline shows.
func TestWholeBoot(t *testing.T) {
	cfg := testConfig()
	cfg.Files = fstest.MapFS{"boot.ipxe": {Data: []byte("#!ipxe\nkernel linux\nboot\n")}, "linux": {Data: content(300_000)}}
	w := newWorld(t, cfg)
	g := w.join("guest", guestMAC, netip.IPv4Unspecified())
	ipxe := [][]byte{opt(93, 0, 0), optText(60, "PXEClient:Arch:00000:UNDI:002001"), optText(77, "iPXE")}
	offer := g.dhcp(bootp{vend: vend(append([][]byte{opt(53, 1)}, ipxe...)...)})
	reply := g.dhcp(bootp{vend: vend(append([][]byte{opt(53, 3), opt(54, offer.opts[54]...), opt(50, offer.yiaddr.AsSlice()...)}, ipxe...)...)})
	g.addr = reply.yiaddr
	last := time.Duration(0)
	shows := func(kinds ...EventKind) {
		for _, kind := range kinds {
			e := w.event(kind)
			if e.Elapsed < last || e.Client.MAC != guestMAC || kind != EventDiscover && e.Client.Addr != g.addr || !e.Client.IPXE() {
				t.Errorf("%s: %+v", kind, e)
			}
			if kind == EventDone && (e.Bytes != e.Size || e.Proto != "tftp") {
				t.Errorf("done: %+v", e)
			}
			last = e.Elapsed
		}
	}
	shows(EventDiscover, EventOffer, EventAck)
	for i, name := range []string{reply.file, "linux"} {
		c := &tftpClient{g: g, port: uint16(2000 + i)}
		r, err := c.get(name, "blksize", "1432", "tsize", "0")
		if err != nil || !bytes.Equal(r.data, cfg.Files.(fstest.MapFS)[name].Data) || r.oack["tsize"] != fmt.Sprint(len(r.data)) {
			t.Fatalf("%s: %d bytes, OACK %v, %v", name, len(r.data), r.oack, err)
		}
		shows(EventRequest, EventDone) // the end of one transfer is told by another goroutine than the next one's beginning
	}
}

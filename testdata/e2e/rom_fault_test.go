package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"polder/device"
	"polder/device/vfiouser"
	"polder/pxe"
	"polder/testdata/guest"
	"polder/tulip/bootrom"
	"polder/vswitch"
)

// romFault is something that goes wrong while a guest boots through the ROM.
type romFault struct {
	name string

	file     string // that the guest is told to boot; default: the default boot program
	noServer bool   // there is no boot service
	noFile   bool   // there is one that has nothing to boot

	// tamper makes what changes the frames for the guest in place. It returns false for a frame that gets lost.
	tamper func() func(frame []byte) bool

	// neighbour is another machine on the switch: it returns what it sends when it sees a frame.
	neighbour func(frame []byte) [][]byte

	key string // pressed when the ROM begins

	// says are patterns of what the ROM says, in order, before the BIOS's next device has its turn. None: the ROM
	// copes with the fault, and the default boot program runs.
	says []string

	event pxe.EventKind // that the boot service then tells; none if empty
}

var romFaults = []romFault{
	{name: "no server", noServer: true,
		says: []string{`^PXE-E51: No DHCP or proxyDHCP offers were received\.`}},
	{name: "a key to skip it", noServer: true, key: "\x1b",
		says: []string{`^PXE-EA0: Network boot canceled by keystroke\.`}},
	{name: "nothing to boot", noFile: true,
		says: []string{`^PXE-E53: No boot filename received\.`}},
	{name: "a file that is not there", file: "no/such.0",
		says: []string{`^TFTP 10\.21\.140\.1: no/such\.0`, `^The server says: .*not found`, `^PXE-E3B: TFTP error: file not found\.`}},
	{name: "a file too large for base memory", file: "large.0",
		says: []string{`^PXE-E79: NBP is too big to fit in free base memory\.`}},
	{name: "a file too large whose size the server does not tell", file: "large.0",
		tamper: oack(func(options []byte) { copy(options[bytes.Index(options, []byte("tsize")):], "hsize") }),
		says:   []string{`^PXE-E79: `}},

	{name: "silence after the offer", tamper: lose(dhcp, 1),
		says: []string{`^PXE-E51: `}},
	{name: "silence before the file", tamper: lose(tftp, 0),
		says: []string{`^PXE-E32: TFTP open timeout\.`}},
	{name: "silence in the middle of the file", tamper: lose(tftp, 4),
		says: []string{`^PXE-E35: TFTP read timeout\.`}},
	{name: "a server that does not answer ARP", tamper: lose(arp, 0),
		says: []string{`^PXE-E30: The TFTP server does not answer to ARP\.`}},

	{name: "a corrupted offer and acknowledgement", tamper: corrupt(dhcp, 0, 2)},
	{name: "corrupted DHCP packets only", tamper: corrupt(dhcp, all...),
		says: []string{`^PXE-E51: `}},
	{name: "options that reach beyond the packet", tamper: change(dhcp, func(message []byte) {
		if bytes.Contains(message[dhcpOptions:], []byte{53, 1, 5}) { // an acknowledgement
			copy(message[dhcpOptions:], []byte{53, 1, 5, 54, 4, 10, 21, 140, 1, 67, 255})
		}
	}), says: []string{`^PXE-E51: `}},

	{name: "corrupted data", tamper: corrupt(tftp, 0, 2, 5, 9)},
	{name: "options that were not asked for", tamper: oack(func(options []byte) {
		copy(options[bytes.Index(options, []byte("blksize"))+8:], "9999")
	})},
	{name: "an answer that is no TFTP", tamper: change(tftp, func(packet []byte) { packet[1] = 9 }),
		says: []string{`^PXE-E33: TFTP unknown opcode\.`}},
	{name: "an error in the middle of the file", tamper: change(tftp, func(packet []byte) {
		if binary.BigEndian.Uint16(packet) == 3 && binary.BigEndian.Uint16(packet[2:]) == 4 {
			copy(packet, "\x00\x05\x00\x00the disk is \x07 on fire\x00")
		}
	}), says: []string{`^The server says: the disk is \? on fire`, `^PXE-E36: Error received from TFTP server\.`}},
	{name: "malformed frames", neighbour: malformed},

	{name: "an address conflict", neighbour: rival,
		says:  []string{`^PXE-E54: The address offered is already in use\.`, `^10\.21\.140\.100 belongs to 00:15:5d:00:00:99`},
		event: pxe.EventDecline},
}

// TestROMFaults boots guests while something goes wrong. The ROM copes with it, or it says what is wrong and gives
// the machine back to the BIOS, whose next device boots. The guests run at once: they mostly wait.
func TestROMFaults(t *testing.T) {
	t.Parallel()
	guests := make([]*guest.Guest, len(romFaults))
	events := make([]chan pxe.EventKind, len(romFaults))
	for i, f := range romFaults {
		events[i] = make(chan pxe.EventKind, 100)
		guests[i] = f.start(t, events[i])
	}
	for i, f := range romFaults {
		if f.key == "" {
			continue
		}
		expect(t, guests[i], bootLimit, `Esc to skip`)
		if err := guests[i].Send(f.key); err != nil {
			t.Fatal(err)
		}
	}
	for i, f := range romFaults {
		t.Run(f.name, func(t *testing.T) {
			if f.says == nil {
				selfTest(t, guests[i])
			}
			expect(t, guests[i], bootLimit, f.says...)
			expect(t, guests[i], bootLimit, exited)
			for f.event != "" {
				select {
				case e := <-events[i]:
					if e == f.event {
						return
					}
				case <-time.After(bootLimit):
					t.Fatalf("the boot service told no %q", f.event)
				}
			}
		})
	}
}

var (
	romServer = vswitch.MAC{0x00, 0x15, 0x5d, 0, 0, 0x01}
	romClient = vswitch.MAC{0x00, 0x15, 0x5d, 0, 0, 0x02}
	romRival  = vswitch.MAC{0x00, 0x15, 0x5d, 0, 0, 0x99}
)

// start starts a guest on a switch of its own, with what goes wrong there. The boot service's events go to events, as
// far as that has room.
func (f romFault) start(t *testing.T, events chan<- pxe.EventKind) *guest.Guest {
	t.Helper()
	sw := vswitch.New(vswitch.Config{Name: f.name})
	t.Cleanup(sw.Close)
	if !f.noServer {
		f.startServer(t, sw, events)
	}
	if f.neighbour != nil {
		startNeighbour(t, sw, f.neighbour)
	}

	log := slog.New(slog.DiscardHandler)
	tulip, err := device.NewTulip(device.TulipConfig{Name: "guest", MAC: romClient, ROM: bootrom.Image, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	port := vswitch.Port(tulip)
	if f.tamper != nil {
		port = &tampered{port: port, change: f.tamper()}
	}
	member, err := sw.Join("guest", port, vswitch.PortOptions{})
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "socket")
	server, err := vfiouser.Listen(socket, tulip, log, "guest")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { tulip.Run(ctx, member.NewIngress()) })
	running.Go(func() {
		if err := server.Serve(ctx); err != nil {
			t.Errorf("%s: vfio-user: %v", f.name, err)
		}
	})
	t.Cleanup(func() {
		server.Close()
		stop()
		running.Wait()
		member.Leave()
		tulip.Close()
	})
	adapter, err := json.Marshal(map[string]any{
		"driver": "vfio-user-pci", "socket": map[string]string{"type": "unix", "path": socket}, "bootindex": 0,
	})
	if err != nil {
		t.Fatal(err)
	}
	return start(t, guest.Config{
		Name: f.name, MemoryMiB: 32, Args: append(disk(t, 1), "-device", string(adapter), "-no-reboot"),
	})
}

// startServer puts a boot service on the switch.
func (f romFault) startServer(t *testing.T, sw *vswitch.Switch, events chan<- pxe.EventKind) {
	t.Helper()
	config := pxe.Config{
		Address: netip.MustParsePrefix("10.21.140.1/24"), MAC: romServer,
		PoolFirst: netip.MustParseAddr("10.21.140.100"), PoolLast: netip.MustParseAddr("10.21.140.109"),
		Files: fstest.MapFS{"large.0": {Data: make([]byte, 700<<10)}},
		Events: func(e pxe.Event) {
			select {
			case events <- e.Kind:
			default:
			}
		},
	}
	if f.file != "" {
		config.Boot = []pxe.BootRule{{File: f.file}}
	}
	if !f.noFile {
		config.DefaultNBP = bootrom.NBP
	}
	server, err := pxe.New(config)
	if err != nil {
		t.Fatal(err)
	}
	member, err := sw.Join("pxe", server, vswitch.PortOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(member.NewIngress()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		server.Close()
		member.Leave()
	})
}

// tampered stands before a port and changes what it is given.
type tampered struct {
	port vswitch.Port

	mu     sync.Mutex // guards what change remembers
	change func(frame []byte) bool
}

// Deliver implements [vswitch.Port].
func (p *tampered) Deliver(frames []*vswitch.Frame) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range frames {
		if frame := f.AppendTo(nil); p.change(frame) {
			p.port.Deliver([]*vswitch.Frame{{Head: frame, Len: len(frame)}})
		}
	}
	return len(frames)
}

// overheard is the port of a neighbour. What it does not get to in time is lost.
type overheard chan []byte

// Deliver implements [vswitch.Port].
func (o overheard) Deliver(frames []*vswitch.Frame) int {
	for i, f := range frames {
		select {
		case o <- f.AppendTo(nil):
		default:
			return i
		}
	}
	return len(frames)
}

// startNeighbour puts a machine on the switch that sends what answer returns for each frame it sees.
func startNeighbour(t *testing.T, sw *vswitch.Switch, answer func(frame []byte) [][]byte) {
	t.Helper()
	port := make(overheard, 16)
	member, err := sw.Join("neighbour", port, vswitch.PortOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for in := member.NewIngress(); ; {
			select {
			case <-ctx.Done():
				return
			case frame := <-port:
				for _, f := range answer(frame) {
					in.Forward([]vswitch.Frame{{Head: f, Len: len(f)}})
				}
			}
		}
	})
	t.Cleanup(func() {
		stop()
		running.Wait()
		member.Leave()
	})
}

// Where things are in a frame, and in a DHCP message (RFC 2131, section 2).
const (
	etherType   = 12
	arpSender   = 22 // MAC address, IPv4 address
	arpTarget   = 38 // IPv4 address
	ipHeader    = 14
	ipProtocol  = ipHeader + 9
	udpHeader   = ipHeader + 20
	udpChecksum = udpHeader + 6
	payload     = udpHeader + 8

	dhcpOptions = 240
)

func isUDP(frame []byte) bool {
	return len(frame) > payload && frame[etherType] == 8 && frame[etherType+1] == 0 && frame[ipProtocol] == 17
}

// arp, dhcp and tftp are the kinds of frames that a ROM is sent.
func arp(frame []byte) bool { return frame[etherType] == 8 && frame[etherType+1] == 6 }

func dhcp(frame []byte) bool { return isUDP(frame) && binary.BigEndian.Uint16(frame[udpHeader:]) == 67 }

func tftp(frame []byte) bool { return isUDP(frame) && !dhcp(frame) }

// lose loses frames of a kind after the first few.
func lose(kind func(frame []byte) bool, after int) func() func([]byte) bool {
	return func() func([]byte) bool {
		seen := 0
		return func(frame []byte) bool {
			if kind(frame) {
				seen++
			}
			return !kind(frame) || seen <= after
		}
	}
}

// all stands for the first hundred frames: for every one.
var all = func() (numbers []int) {
	for i := range 100 {
		numbers = append(numbers, i)
	}
	return numbers
}()

// corrupt flips a bit in these frames of a kind, counted from 0. The UDP checksum tells.
func corrupt(kind func(frame []byte) bool, which ...int) func() func([]byte) bool {
	return func() func([]byte) bool {
		seen := 0
		return func(frame []byte) bool {
			if kind(frame) {
				if slices.Contains(which, seen) {
					frame[len(frame)-1] ^= 1
				}
				seen++
			}
			return true
		}
	}
}

// change changes the payload of every frame of a kind. Without a UDP checksum, nothing tells.
func change(kind func(frame []byte) bool, f func(payload []byte)) func() func([]byte) bool {
	return func() func([]byte) bool {
		return func(frame []byte) bool {
			if kind(frame) {
				binary.BigEndian.PutUint16(frame[udpChecksum:], 0)
				f(frame[payload:])
			}
			return true
		}
	}
}

// oack changes the options that the TFTP server acknowledges first (RFC 2347).
func oack(f func(options []byte)) func() func([]byte) bool {
	return func() func([]byte) bool {
		seen := false
		return change(tftp, func(packet []byte) {
			if packet[1] == 6 && !seen {
				seen = true
				f(packet[2:])
			}
		})()
	}
}

// rival owns the address that the guest is given: it answers the guest's probe for it (RFC 5227, section 2.1.1).
func rival(frame []byte) [][]byte {
	probe := arp(frame) && vswitch.MAC(frame[arpSender:arpSender+6]) == romClient &&
		bytes.Equal(frame[arpSender+6:arpSender+10], make([]byte, 4))
	if !probe {
		return nil
	}
	reply := slices.Concat(romClient[:], romRival[:], []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 2},
		romRival[:], frame[arpTarget:arpTarget+4], romClient[:], make([]byte, 4))
	return [][]byte{reply}
}

// malformed answers whatever the guest sends to all with frames that are wrong in many ways.
func malformed(frame []byte) [][]byte {
	ip := func(b ...byte) []byte {
		header := slices.Concat(romClient[:], romRival[:], []byte{8, 0}, b)
		return append(header, make([]byte, 100)...)
	}
	frames := [][]byte{
		slices.Concat(romClient[:], romRival[:], []byte{8, 0}),                                                           // an IP packet of no bytes
		slices.Concat(romClient[:], romRival[:], []byte{8, 6}),                                                           // an ARP packet of no bytes
		slices.Concat(romClient[:], romRival[:], []byte{8, 6, 0, 1, 8, 0, 255, 255, 0, 2}),                               // with long addresses
		ip(0x4f, 0, 0, 20, 0, 0, 0, 0, 64, 17),                                                                           // a header longer than its packet
		ip(0x45, 0, 255, 255, 0, 0, 0, 0, 64, 17),                                                                        // a packet longer than its frame
		ip(0x41, 0, 0, 40, 0, 0, 0, 0, 64, 17),                                                                           // a header too short
		ip(0x65, 0, 0, 40, 0, 0, 0, 0, 64, 17),                                                                           // another version
		ip(0x45, 0, 0, 40, 0, 0, 0x20, 0, 64, 17),                                                                        // a fragment
		sealed(0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 1, 1, 1, 1, 255, 255, 255, 255, 0, 67, 0, 68, 0, 0, 0, 0),       // a datagram of no bytes
		sealed(0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 1, 1, 1, 1, 255, 255, 255, 255, 0, 67, 0, 68, 255, 255, 0, 0),   // one longer than its packet
		sealed(0x45, 0, 0, 128, 0, 0, 0, 0, 64, 17, 0, 0, 1, 1, 1, 1, 255, 255, 255, 255, 0, 67, 0, 68, 0, 108, 0, 0, 2), // a DHCP reply of one byte
	}
	return frames
}

// sealed is a frame with this IP header, whose checksum is filled in, and what follows it.
func sealed(b ...byte) []byte {
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum+sum>>16))
	return append(slices.Concat(romClient[:], romRival[:], []byte{8, 0}, b), make([]byte, 100)...)
}

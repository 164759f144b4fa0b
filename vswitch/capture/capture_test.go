package capture_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"polder/vswitch"
	"polder/vswitch/capture"
	"polder/vswitch/porttest"
)

var (
	alice     = vswitch.MAC{0x02, 0, 0, 0, 0, 0x0a}
	bob       = vswitch.MAC{0x02, 0, 0, 0, 0, 0x0b}
	broadcast = vswitch.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
)

func join(t *testing.T, s *vswitch.Switch, name string, room int, o vswitch.PortOptions) *vswitch.Ingress {
	t.Helper()
	m, err := s.Join(name, porttest.NewRecorder(room), o)
	if err != nil {
		t.Fatal(err)
	}
	return m.NewIngress()
}

// frame returns a frame of n bytes.
func frame(dst, src vswitch.MAC, n int) vswitch.Frame {
	b := slices.Concat(dst[:], src[:], []byte{0x88, 0xb5}, make([]byte, n-14))
	return vswitch.Frame{Head: b, Len: n}
}

// tcp returns a frame with a TCP segment of n bytes of payload whose checksum is
// left out.
func tcp(dst, src vswitch.MAC, n int) vswitch.Frame {
	b := slices.Concat(dst[:], src[:], []byte{0x08, 0x00, 0x45, 0})
	b = binary.BigEndian.AppendUint16(b, uint16(40+n))
	b = append(b, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2)
	b = append(b, 0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 0xff, 0xff, 0xab, 0xcd, 0, 0)
	for i := range n {
		b = append(b, byte(i))
	}
	return vswitch.Frame{
		Head: b[:min(len(b), vswitch.HeadLen)], Body: [][]byte{b[min(len(b), vswitch.HeadLen):]}, Len: len(b),
		Offload: vswitch.Offload{NeedsChecksum: true, ChecksumStart: 34, ChecksumOffset: 16},
	}
}

// packet is what gopacket reads, as text and bytes.
type packet struct {
	what string
	data []byte
}

// read parses a capture with gopacket.
func read(t *testing.T, b []byte) (packets []packet, r *pcapgo.NgReader) {
	t.Helper()
	r, err := pcapgo.NewNgReader(bytes.NewReader(b), pcapgo.NgReaderOptions{WantMixedLinkType: true})
	if err != nil {
		t.Fatal(err)
	}
	for {
		data, ci, opts, err := r.ReadPacketDataWithOptions()
		if errors.Is(err, io.EOF) {
			return packets, r
		}
		if err != nil {
			t.Fatal(err)
		}
		i, err := r.Interface(ci.InterfaceIndex)
		if err != nil {
			t.Fatal(err)
		}
		what := i.Name
		switch opts.Flags.Direction {
		case pcapgo.NgEpbFlagDirectionInbound:
			what += " in"
		case pcapgo.NgEpbFlagDirectionOutbound:
			what += " out"
		}
		switch opts.Flags.Reception {
		case pcapgo.NgEpbFlagReceptionTypeUnicast:
			what += " unicast"
		case pcapgo.NgEpbFlagReceptionTypeMulticast:
			what += " multicast"
		case pcapgo.NgEpbFlagReceptionTypeBroadcast:
			what += " broadcast"
		}
		what += fmt.Sprintf(" %d/%d", ci.CaptureLength, ci.Length)
		for _, c := range opts.Comments {
			what += " " + c
		}
		if opts.DropCount != nil {
			what += fmt.Sprintf(" lost=%d", *opts.DropCount)
		}
		if d := time.Since(ci.Timestamp); d < 0 || d > time.Hour {
			t.Errorf("%s was captured %v ago", what, d)
		}
		packets = append(packets, packet{what, data})
	}
}

func check(t *testing.T, got []packet, want ...string) {
	t.Helper()
	var lines []string
	for _, p := range got {
		lines = append(lines, p.what)
	}
	if !slices.Equal(lines, want) {
		t.Errorf("the capture has\n\t%s\nwant\n\t%s", strings.Join(lines, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// observe has an observer see what act does, and returns the capture.
func observe(t *testing.T, s *vswitch.Switch, c vswitch.ObserverConfig, act func()) []byte {
	t.Helper()
	o, err := s.Observe(c)
	if err != nil {
		t.Fatal(err)
	}
	act()
	o.Close()
	var b bytes.Buffer
	if err := capture.Stream(t.Context(), &b, o); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestStream(t *testing.T) {
	s := vswitch.New(vswitch.Config{Name: "LAN"})
	defer s.Close()
	a := join(t, s, "web01/nic0", 100, vswitch.PortOptions{MACs: []vswitch.MAC{alice}})
	b := join(t, s, "web02/nic0", 100, vswitch.PortOptions{BPDU: vswitch.BPDUDrop})
	got, r := read(t, observe(t, s, vswitch.ObserverConfig{}, func() {
		a.Forward([]vswitch.Frame{frame(broadcast, alice, 60), frame(bob, bob, 61)})
		b.Forward([]vswitch.Frame{frame(alice, bob, 62), frame(vswitch.MAC{1, 0x80, 0xc2}, bob, 63)})
		b.Forward([]vswitch.Frame{{Head: make([]byte, 5), Len: 5}})
	}))
	check(t, got,
		"web01/nic0 in broadcast 60/60",
		"web01/nic0 in unicast 61/61 drop=mac-spoofing",
		"web02/nic0 out broadcast 60/60",
		"web02/nic0 in unicast 62/62",
		"web02/nic0 in multicast 63/63 drop=bpdu",
		"web01/nic0 out unicast 62/62",
		"web02/nic0 in 5/5 drop=runt",
	)
	if n := r.NInterfaces(); n != 2 {
		t.Fatalf("%d interfaces, want 2", n)
	}
	i, _ := r.Interface(0)
	if i.Name != "web01/nic0" || i.Description != "port web01/nic0 of switch LAN" || i.LinkType != layers.LinkTypeEthernet {
		t.Errorf("interface 0 is %+v", i)
	}
	if i.Statistics.PacketsReceived != 3 || i.Statistics.PacketsDropped != 0 {
		t.Errorf("statistics of interface 0: %+v", i.Statistics)
	}
	if app := r.SectionInfo().Application; app != "Polder" {
		t.Errorf("written by %q", app)
	}
}

func TestDropsOnly(t *testing.T) {
	s := vswitch.New(vswitch.Config{Name: "LAN"})
	defer s.Close()
	a := join(t, s, "a", 100, vswitch.PortOptions{})
	join(t, s, "b", 1, vswitch.PortOptions{})
	got, _ := read(t, observe(t, s, vswitch.ObserverConfig{DropsOnly: true}, func() {
		a.Forward([]vswitch.Frame{frame(broadcast, alice, 60), frame(broadcast, alice, 61), frame(alice, alice, 62)})
	}))
	check(t, got, "a in unicast 62/62 drop=hairpin", "b out broadcast 61/61 drop=receiver-full")
}

// TestOnePort has frames of one port only, which are cut.
func TestOnePort(t *testing.T) {
	s := vswitch.New(vswitch.Config{Name: "LAN"})
	defer s.Close()
	a := join(t, s, "a", 100, vswitch.PortOptions{})
	join(t, s, "b", 100, vswitch.PortOptions{})
	b := s.Members()[1]
	got, r := read(t, observe(t, s, vswitch.ObserverConfig{Members: []*vswitch.Member{b}, SnapLen: 20}, func() {
		a.Forward([]vswitch.Frame{frame(broadcast, alice, 1000)})
		join(t, s, "c", 100, vswitch.PortOptions{}).Forward([]vswitch.Frame{frame(alice, bob, 60)})
	}))
	check(t, got, "b out broadcast 20/1000")
	if i, _ := r.Interface(0); i.SnapLength != 20 || r.NInterfaces() != 1 {
		t.Errorf("%d interfaces, the first cuts after %d bytes", r.NInterfaces(), i.SnapLength)
	}
}

// TestOffload has frames with work left undone: the copies have checksums.
func TestOffload(t *testing.T) {
	s := vswitch.New(vswitch.Config{Name: "LAN"})
	defer s.Close()
	a := join(t, s, "a", 100, vswitch.PortOptions{})
	join(t, s, "b", 100, vswitch.PortOptions{})
	big := tcp(bob, alice, 3001)
	big.Offload.GSO, big.Offload.GSOSize = vswitch.GSOTCPv4, 1448
	bad := tcp(bob, alice, 10)
	bad.Offload.ChecksumStart++
	before := bytes.Clone(big.AppendTo(nil))
	got, _ := read(t, observe(t, s, vswitch.ObserverConfig{}, func() {
		a.Forward([]vswitch.Frame{tcp(bob, alice, 10), big, bad})
	}))
	check(t, got,
		"a in unicast 64/64 drop=bad-offload",
		"a in unicast 64/64 checksum=completed",
		"a in unicast 3055/3055 checksum=completed gso=tcp4/1448",
		"b out unicast 64/64",
		"b out unicast 1502/1502",
		"b out unicast 1502/1502",
		"b out unicast 159/159",
	)
	if len(got) != 7 {
		return
	}
	for _, p := range got[1:] {
		if sum := tcpSum(p.data); sum != 0xffff {
			t.Errorf("%s: the sum is %#x", p.what, sum)
		}
	}
	if !bytes.Equal(big.AppendTo(nil), before) {
		t.Error("the sender's frame has changed")
	}
}

// A frame that is dropped for its length is never shorter than what is kept of it.
func TestHugeFrame(t *testing.T) {
	part := make([]byte, 1<<20)
	f := vswitch.Frame{Head: part[:vswitch.HeadLen], Len: vswitch.HeadLen + len(part)<<12}
	for range 1 << 12 {
		f.Body = append(f.Body, part)
	}
	s := vswitch.New(vswitch.Config{Name: "LAN"})
	defer s.Close()
	a := join(t, s, "a", 100, vswitch.PortOptions{})
	got, _ := read(t, observe(t, s, vswitch.ObserverConfig{SnapLen: 1 << 20}, func() { a.Forward([]vswitch.Frame{f}) }))
	check(t, got, "a in unicast 65557/4294967295 drop=oversize")
}

// tcpSum adds up what the checksum of a TCP segment over IPv4 covers.
func tcpSum(b []byte) uint16 {
	seg := slices.Clone(b[34:])
	sum := uint32(6 + len(seg))
	seg = append(seg, 0)
	for _, part := range [][]byte{b[26:34], seg[:len(seg)&^1]} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// TestLost has a reader that does not read until the buffer is full.
func TestLost(t *testing.T) {
	s := vswitch.New(vswitch.Config{Name: "LAN"})
	defer s.Close()
	a := join(t, s, "a", 100, vswitch.PortOptions{})
	join(t, s, "b", 100, vswitch.PortOptions{})
	a.Forward([]vswitch.Frame{frame(broadcast, alice, 60)})
	o, err := s.Observe(vswitch.ObserverConfig{Members: s.Members()[:1], Buffer: 1})
	if err != nil {
		t.Fatal(err)
	}
	huge := func(n int) { a.Forward([]vswitch.Frame{frame(broadcast, alice, n)}) }
	huge(vswitch.MaxFrameLen)
	huge(100)
	huge(101)
	if _, err := o.Read(t.Context()); err != nil {
		t.Fatal(err)
	}
	huge(102)
	huge(vswitch.MaxFrameLen)
	o.Close()
	huge(103)
	var b bytes.Buffer
	if err := capture.Stream(t.Context(), &b, o); err != nil {
		t.Fatal(err)
	}
	got, r := read(t, b.Bytes())
	check(t, got, "a in broadcast 102/102 lost=2")
	if i, _ := r.Interface(0); i.Statistics.PacketsReceived != 5 || i.Statistics.PacketsDropped != 3 {
		t.Errorf("statistics are %+v, want 5 seen and 3 lost", i.Statistics)
	}
}

// TestEmpty has a switch without ports: a header at once, and an end.
func TestEmpty(t *testing.T) {
	s := vswitch.New(vswitch.Config{})
	defer s.Close()
	o, err := s.Observe(vswitch.ObserverConfig{})
	if err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- capture.Stream(ctx, w, o) }()
	header := make([]byte, 12)
	if _, err := io.ReadFull(r, header); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(header[:4], []byte{0x0a, 0x0d, 0x0d, 0x0a}) {
		t.Errorf("the file begins with %x", header)
	}
	rest := make([]byte, binary.LittleEndian.Uint32(header[4:])-12)
	if _, err := io.ReadFull(r, rest); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestReaderGone: the stream ends with the error of its writer.
func TestReaderGone(t *testing.T) {
	s := vswitch.New(vswitch.Config{})
	defer s.Close()
	a := join(t, s, "a", 100, vswitch.PortOptions{})
	o, err := s.Observe(vswitch.ObserverConfig{})
	if err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	done := make(chan error)
	go func() { done <- capture.Stream(t.Context(), w, o) }()
	if _, err := r.Read(make([]byte, 1<<16)); err != nil {
		t.Fatal(err)
	}
	r.Close()
	a.Forward([]vswitch.Frame{frame(broadcast, alice, 60)})
	if err := <-done; !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("the stream ended with %v", err)
	}
}

// TestSwitchCloses: the stream of a switch that is closed ends in good order.
func TestSwitchCloses(t *testing.T) {
	s := vswitch.New(vswitch.Config{})
	a := join(t, s, "a", 100, vswitch.PortOptions{})
	o, err := s.Observe(vswitch.ObserverConfig{})
	if err != nil {
		t.Fatal(err)
	}
	a.Forward([]vswitch.Frame{frame(broadcast, alice, 60)})
	s.Close()
	var b bytes.Buffer
	if err := capture.Stream(t.Context(), &b, o); err != nil {
		t.Fatal(err)
	}
	got, _ := read(t, b.Bytes())
	check(t, got, "a in broadcast 60/60 drop=no-port")
	if _, err := s.Observe(vswitch.ObserverConfig{}); !errors.Is(err, vswitch.ErrClosed) {
		t.Errorf("observing a closed switch: %v", err)
	}
}

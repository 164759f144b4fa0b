package vswitch_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"polder/vswitch"
	"polder/vswitch/porttest"
)

func vlans(t testing.TB, text string) vswitch.VLANSet {
	t.Helper()
	s, err := vswitch.ParseVLANSet(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// joinSmall is join for a port that gets few frames between two looks.
func joinSmall(t testing.TB, s *vswitch.Switch, name string, o vswitch.PortOptions) *station {
	t.Helper()
	r := porttest.NewRecorder(8)
	m, err := s.Join(name, r, o)
	if err != nil {
		t.Fatal(err)
	}
	return &station{m, m.NewIngress(), r}
}

// inVLAN returns options for a place among VLANs written like "access 10",
// "trunk 10,20 native 30", "isolated 100 101" or "promiscuous 100 101-103".
func inVLAN(t testing.TB, text string) vswitch.PortOptions {
	t.Helper()
	var v vswitch.VLAN
	words := append(strings.Fields(text), "", "", "")
	num := func(s string) (n uint16) {
		if _, err := fmt.Sscan(s, &n); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		return n
	}
	switch words[0] {
	case "none":
	case "access":
		v = vswitch.VLAN{Mode: vswitch.VLANAccess, ID: num(words[1])}
	case "trunk":
		v = vswitch.VLAN{Mode: vswitch.VLANTrunk, Allowed: vlans(t, words[1])}
		if words[2] == "native" {
			v.Native = num(words[3])
		}
	case "isolated":
		v = vswitch.VLAN{Mode: vswitch.VLANIsolated, ID: num(words[1]), Secondary: num(words[2])}
	case "community":
		v = vswitch.VLAN{Mode: vswitch.VLANCommunity, ID: num(words[1]), Secondary: num(words[2])}
	case "promiscuous":
		v = vswitch.VLAN{Mode: vswitch.VLANPromiscuous, ID: num(words[1]), Allowed: vlans(t, words[2])}
	default:
		t.Fatalf("no such VLAN mode: %s", text)
	}
	return vswitch.PortOptions{VLAN: v}
}

// tagged puts tags into a frame, written like "10", "0.20", with the outermost
// first, "s20" for a service tag, and "-" for none.
func tagged(f vswitch.Frame, tags string) vswitch.Frame {
	if tags == "-" {
		return f
	}
	b := slices.Clone(f.Head[:12])
	for tag := range strings.SplitSeq(tags, ".") {
		kind := uint16(0x8100)
		if tag[0] == 's' {
			tag, kind = tag[1:], 0x88a8
		}
		n, err := strconv.ParseUint(tag, 0, 16)
		if err != nil {
			panic(err)
		}
		b = binary.BigEndian.AppendUint16(b, kind)
		b = binary.BigEndian.AppendUint16(b, uint16(n))
	}
	f.Len += len(b) - 12
	f.Head = append(b, f.Head[12:]...)
	return f
}

// tagsOf returns the tags of a frame, as tagged takes them.
func tagsOf(b []byte) string {
	var tags []string
	for {
		n := strconv.Itoa(int(binary.BigEndian.Uint16(b[14:])))
		switch binary.BigEndian.Uint16(b[12:]) {
		case 0x8100:
			tags = append(tags, n)
		case 0x88a8:
			tags = append(tags, "s"+n)
		default:
			if tags == nil {
				return "-"
			}
			return strings.Join(tags, ".")
		}
		b = b[4:]
	}
}

// matrixPorts are the ports of the matrix, named by letters from a on.
var matrixPorts = []string{
	"none",                        // a
	"none",                        // b
	"access 10",                   // c
	"access 10",                   // d
	"access 20",                   // e
	"trunk 10,20",                 // f, whose untagged frames are those of a and b
	"trunk 10,20",                 // g
	"trunk 20,100-104 native 10",  // h
	"isolated 100 101",            // i
	"isolated 100 101",            // j
	"community 100 102",           // k
	"community 100 102",           // l
	"community 100 103",           // m
	"promiscuous 100 101,102,103", // n
	"promiscuous 100 102",         // o
}

// matrix is who gets a broadcast from a port with certain tags: the letter of
// the port and the tags it sees; or why nobody does.
var matrix = []struct {
	from string
	tags string // alternatives
	want string
}{
	{"a", "-", "b- f- g-"},
	{"a", "0", "b0 f0 g0"},
	{"a", "10", "b10"}, // no way out of its VLAN, nor into another
	{"a", "20", "b20"},
	{"a", "4095", "b4095"},
	{"a", "0.20", "b0.20"},
	{"a", "20.10", "b20.10"},
	{"a", "s20", "bs20"},
	{"b", "-", "a- f- g-"},

	{"c", "- 0", "d- f10 g10 h-"},
	{"c", "10 20 30 100 4095 0.20 0.0 10.20 s10 s20 s0", "vlan-ingress"},
	{"d", "- 0", "c- f10 g10 h-"},
	{"e", "- 0 ", "f20 g20 h20"},
	{"e", "20 0.20 20.20", "vlan-ingress"},

	{"f", "-", "a- b- g-"},
	{"f", "0", "a0 b0 g-"},
	{"f", "10", "c- d- g10 h-"},
	{"f", "20", "e- g20 h20"},
	{"f", "57364", "e- g57364 h57364"}, // 20 with priority 7
	{"f", "10.20", "c20 d20 g10.20"},   // h would send it as one of VLAN 20
	{"f", "20.10", "e10 g20.10 h20.10"},
	{"f", "0.20", "a0.20 b0.20"},
	{"f", "30 100 4095 s10 s20 s0", "vlan-ingress"},
	{"g", "10", "c- d- f10 h-"},

	{"h", "- 0", "c- d- f10 g10"},
	{"h", "57344", "c- d- f57354 g57354"}, // only priority 7
	{"h", "20", "e- f20 g20"},
	{"h", "0.20", "c20 d20 f10.20 g10.20"},
	{"h", "100", "i- j- k- l- m- n- o-"},
	{"h", "101", "n-"},
	{"h", "102", "k- l- n- o-"},
	{"h", "103", "m- n-"},
	{"h", "104", "no-port"},
	{"h", "10 30 4095", "vlan-ingress"},

	{"i", "- 0", "h101 n-"},
	{"j", "- 0", "h101 n-"},
	{"k", "- 0", "h102 l- n- o-"},
	{"l", "- 0", "h102 k- n- o-"},
	{"m", "- 0", "h103 n-"},
	{"n", "- 0", "h100 i- j- k- l- m- o-"},
	{"o", "- 0", "h100 k- l- n-"},
	{"i", "100 101 102 0.101", "vlan-ingress"},
	{"k", "100 101 102 0.101", "vlan-ingress"},
	{"n", "100 101 102 0.101", "vlan-ingress"},
}

// TestVLANMatrix sends a broadcast with certain tags from each kind of port to
// see who gets it. Then, with everybody's address known, the same to each of the
// others: it must get there, and nowhere else, if the broadcast did.
func TestVLANMatrix(t *testing.T) {
	const letters = "abcdefghijklmno"
	for _, test := range matrix {
		for _, tags := range strings.Fields(test.tags) {
			t.Run(test.from+" "+tags, func(t *testing.T) {
				s := newSwitch(t, vswitch.Config{MaxMACs: 64})
				var ports []*station
				for i, o := range matrixPorts {
					ports = append(ports, joinSmall(t, s, letters[i:i+1], inVLAN(t, o)))
				}
				from := strings.Index(letters, test.from)
				send := func(dst vswitch.MAC) string {
					before := ports[from].Stats().Drops
					f := tagged(frame(dst, mac(from), 7), tags)
					ports[from].Forward([]vswitch.Frame{f})
					var got []string
					for i, p := range ports {
						for _, b := range p.Take() {
							got = append(got, letters[i:i+1]+tagsOf(b))
							if len(b) != 60+4*tagCount(tagsOf(b)) || !bytes.Equal(b[:12], f.Head[:12]) {
								t.Errorf("%s got %x", letters[i:i+1], b)
							}
						}
					}
					for r, n := range ports[from].Stats().Drops {
						if n != before[r] {
							got = append(got, vswitch.DropReason(r).String())
						}
					}
					return strings.Join(got, " ")
				}
				if got := send(broadcast); got != test.want {
					t.Fatalf("a broadcast went to %q, want %q", got, test.want)
				}
				for i, p := range ports {
					for _, own := range []string{"-", "10", "20", "100", "101", "102", "103"} {
						p.Forward([]vswitch.Frame{tagged(frame(broadcast, mac(i), 8), own)})
					}
					for _, p := range ports {
						p.Take()
					}
				}
				for i := range ports {
					if i == from {
						continue
					}
					letter := letters[i : i+1]
					got := send(mac(i))
					var want string
					for _, w := range strings.Fields(test.want) {
						if w[:1] == letter {
							want = w
						}
					}
					switch {
					case want != "" && got != want:
						t.Errorf("a frame to %s went to %q, want %q", letter, got, want)
					case want == "" && got != test.want && got != "private-vlan" && got != "vlan-egress":
						t.Errorf("a frame to %s, which is out of reach, went to %q", letter, got)
					}
				}
			})
		}
	}
}

// TestTagsInRun: of frames with the same addresses and EtherType, each is judged
// by its own tag.
func TestTagsInRun(t *testing.T) {
	s := newSwitch(t, vswitch.Config{MaxMACs: 64})
	a := joinSmall(t, s, "a", inVLAN(t, "none"))
	b := joinSmall(t, s, "b", inVLAN(t, "trunk 10"))
	b.Forward([]vswitch.Frame{frame(broadcast, mac(2), 1)})
	var batch []vswitch.Frame
	for _, tags := range []string{"-", "0", "10", "0", "0.10", "-", "10"} {
		batch = append(batch, tagged(frame(mac(2), mac(1), 7), tags))
	}
	a.Forward(batch)
	var got []string
	for _, f := range b.Take() {
		got = append(got, tagsOf(f))
	}
	if want := []string{"-", "0", "0", "-"}; !slices.Equal(got, want) {
		t.Errorf("the trunk got frames tagged %q, want %q", got, want)
	}
	if n := a.Stats().Drops[vswitch.DropVLANEgress]; n != 3 {
		t.Errorf("%d frames were dropped for their tags, want 3", n)
	}
}

func tagCount(tags string) int {
	if tags == "-" {
		return 0
	}
	return 1 + strings.Count(tags, ".")
}

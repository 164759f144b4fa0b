package e2e

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"polder/testdata/guest"
)

// TestPolicy is about what a guest may send, and where to: two guests, of which one is malicious.
func TestPolicy(t *testing.T) {
	t.Parallel()
	d := serve(t, `
switches:
  - {name: lan}
vms:
  - {name: a, memory: 256M, adapters: [{name: a, switch: lan, kind: synthetic, mac: "00:15:5d:00:00:0a"}]}
  - {name: b, memory: 256M, adapters: [{name: b, switch: lan, kind: synthetic, mac: "00:15:5d:00:00:0b"}]}
`)
	if status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.Pid())); err != nil || !strings.Contains(string(status), "CapEff:\t0000000000000000\n") {
		t.Errorf("the daemon of a private switch has privileges: %v\n%s", err, status)
	}
	guests := d.boot(t, map[string]string{"a": "net0=10.0.0.10/24", "b": "net0=10.0.0.11/24"})
	t.Run("guards", func(t *testing.T) { testGuards(t, d, guests["a"]) })
	t.Run("VLANs", func(t *testing.T) { testVLANs(t, d, guests["a"], guests["b"]) })
}

// frame joins parts in hexadecimal, in which blanks do not count.
func frame(parts ...string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(strings.Join(parts, ""), " ", ""))
	if err != nil {
		panic(err)
	}
	return append(b, make([]byte, max(0, 60-len(b)))...)
}

// Pieces of frames.
const (
	macA, macB = "00155d00000a", "00155d00000b"
	addresses  = "fe80000000000000 0000000000000666 ff02000000000000 0000000000000001" // of IPv6: from a router's to all nodes

	// An advertisement of the prefix 2001:db8:666::/64 (RFC 4861, 4.2), 48 bytes.
	advertisement = "8600 0000 40 00 0708 00000000 00000000 0304 40c0 00015180 00003840 00000000 20010db806660000 0000000000000000"
)

// testGuards has a guest send what it should not: at first all of it arrives at the other one, and then, when the guards are up,
// nothing does. The judge of what was sent is Wireshark.
func testGuards(t *testing.T, d daemon, a *guest.Guest) {
	attacks := []struct {
		name   string
		frame  []byte
		count  int
		filter string   // Wireshark's, of this frame
		guard  []string // flags that put the guard up
		reason string
	}{
		{"spoofed source", frame("ffffffffffff 02bad0000001 88b5"), 1,
			"eth.src == 02:ba:d0:00:00:01", []string{"--mac-spoofing=off"}, "mac-spoofing"},
		{"rogue DHCP server", frame("ffffffffffff", macA, "0800",
			"4500 0114 0000 0000 40 11 0000 0a00000a ffffffff", "0043 0044 0100 0000", // from 67 to 68
			"02 01 06 00 12345678 0000 0000 00000000 0a000063 0a00000a 00000000", // an offer of 10.0.0.99
			macB, strings.Repeat("00", 10+64+128), "63825363 350102 36040a00000a ff 00"), 1,
			"dhcp.option.dhcp == 2", []string{"--dhcp-guard=on"}, "dhcp-guard"},
		{"rogue router", frame("333300000001", macA, "86dd", "60000000 0030 3a ff", addresses, advertisement), 1,
			"icmpv6.type == 134 && !ipv6.hopopts && !ipv6.fraghdr", []string{"--router-guard=on"}, "router-guard"},
		{"rogue router behind extension headers", frame("333300000001", macA, "86dd", "60000000 0040 00 ff", addresses,
			"3c 00 0104 00000000", "3a 00 0104 00000000", advertisement), 1, // hop-by-hop and destination options
			"icmpv6.type == 134 && ipv6.hopopts", []string{"--router-guard=on"}, "router-guard"},
		{"rogue router in a fragment", frame("333300000001", macA, "86dd", "60000000 0040 2c ff", addresses,
			"3c 00 0001 00000666", "3a 00 0104 00000000", advertisement), 1, // the first, and more follow
			"ipv6.fraghdr.ident == 0x666", []string{"--router-guard=on"}, "router-guard"},
		{"rogue router whose first fragment does not tell", frame("333300000001", macA, "86dd", "60000000 0010 2c ff", addresses,
			"3c 00 0001 00000667", "3a 00 0104 00000000"), 1,
			"ipv6.fraghdr.ident == 0x667", []string{"--router-guard=on"}, "router-guard"},
		{"BPDU", frame("01000ccccccd", macA, "0032", "aaaa03 00000c 010b", // Cisco's, which a bridge would pass on
			"0000 00 00 00 8000", macA, "00000000 8000", macA, "8001 0000 1400 0200 0f00"), 1,
			"stp", []string{"--bpdu=drop"}, "bpdu"},
		{"storm", frame("ffffffffffff", macA, "88b6"), 300,
			"eth.type == 0x88b6", []string{"--storm-limit=100"}, "storm-limit"},
	}
	send := func(t *testing.T) (file string, dropped map[string]uint64) {
		file = filepath.Join(t.TempDir(), "lan.pcapng")
		before := d.drops(t, "a")
		capture := exec.Command(polder, "--runtime-dir", d.Dir(), "capture", "a", "b", "-w", file)
		if err := capture.Start(); err != nil {
			t.Fatal(err)
		}
		soon(t, "the capture", func() bool { return fileSize(file) > 0 })
		for _, attack := range attacks {
			command(t, a, fmt.Sprintf("inject eth0 %d %x", attack.count, attack.frame))
		}
		command(t, a, "inject eth0 1 "+hex.EncodeToString(frame("00155d0000ff", macA, "88b7"))) // the last one
		soon(t, "the last frame in the capture", func() bool {
			out, _ := exec.Command(cache.Path("bin/tshark"), "-r", file, "-Y", "eth.type == 0x88b7").Output()
			return len(out) > 0
		})
		capture.Process.Signal(syscall.SIGINT)
		if err := capture.Wait(); err != nil {
			t.Errorf("polder capture: %v", err)
		}
		dropped = d.drops(t, "a")
		for reason, n := range before {
			dropped[reason] -= n
		}
		return file, dropped
	}

	t.Run("down", func(t *testing.T) {
		file, dropped := send(t)
		for _, attack := range attacks {
			in := packets(t, file, attack.filter+` && frame.interface_name == "a"`, "frame.packet_flags_direction", "frame.comment")
			out := packets(t, file, attack.filter+` && frame.interface_name == "b"`, "frame.packet_flags_direction", "frame.comment")
			if want := slices.Repeat([][]string{{"0x00000001", ""}}, attack.count); !slices.EqualFunc(in, want, slices.Equal) {
				t.Errorf("%s: from a %v, want %d", attack.name, in, attack.count)
			}
			if want := slices.Repeat([][]string{{"0x00000002", ""}}, attack.count); !slices.EqualFunc(out, want, slices.Equal) {
				t.Errorf("%s: to b %v, want %d", attack.name, out, attack.count)
			}
			if n := dropped[attack.reason]; n != 0 {
				t.Errorf("%s: %d frames are counted as %s, with no guard up", attack.name, n, attack.reason)
			}
		}
	})
	t.Run("up", func(t *testing.T) {
		want := map[string]uint64{}
		for _, attack := range attacks {
			d.polder(t, append([]string{"adapter", "set", "a"}, attack.guard...)...)
			want[attack.reason] += uint64(attack.count)
		}
		file, dropped := send(t)
		for _, attack := range attacks {
			in := packets(t, file, attack.filter+` && frame.interface_name == "a"`, "frame.comment")
			out := packets(t, file, attack.filter+` && frame.interface_name == "b"`, "frame.comment")
			dropped := dropped[attack.reason]
			if attack.reason == "storm-limit" { // some pass, as many as the time allows
				if len(in) != attack.count || dropped == 0 || len(out) == 0 || int(dropped) != attack.count-len(out) {
					t.Errorf("storm: %d of %d frames came, %d went on, %d are counted as dropped", len(in), attack.count, len(out), dropped)
				}
				in = slices.DeleteFunc(in, func(p []string) bool { return p[0] == "" })
				if len(in) != int(dropped) {
					t.Errorf("storm: %d of %d drops have a comment", len(in), dropped)
				}
			} else if len(out) != 0 || dropped != want[attack.reason] || len(in) != attack.count {
				t.Errorf("%s: %d of %d came, %d frames went on; %d of %d are counted as %s", attack.name, len(in), attack.count, len(out), dropped, want[attack.reason], attack.reason)
			}
			for _, p := range in {
				if p[0] != "drop="+attack.reason {
					t.Errorf("%s: the comment is %q, want drop=%s", attack.name, p[0], attack.reason)
				}
			}
		}
		if verdict := tool(t, "capinfos", "-c", "-M", file); !strings.Contains(verdict, "Number of packets") {
			t.Errorf("capinfos: %s", verdict)
		}
	})
	d.polder(t, "adapter", "set", "a", "--mac-spoofing=on", "--dhcp-guard=off", "--router-guard=off", "--storm-limit=0")
}

// drops returns how many frames of a port were dropped, by reason.
func (d daemon) drops(t *testing.T, port string) map[string]uint64 {
	t.Helper()
	var list []struct {
		Port, Reason string
		Frames       uint64
	}
	if err := json.Unmarshal([]byte(d.polder(t, "drops", port, "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	drops := map[string]uint64{}
	for _, d := range list {
		if d.Port != port {
			t.Errorf("asked for port %s, told of %s", port, d.Port)
		}
		drops[d.Reason] += d.Frames
	}
	return drops
}

// testVLANs puts two guests into VLANs while they run. b has adapters for the VLANs 10 and 20 on its own.
func testVLANs(t *testing.T, d daemon, a, b *guest.Guest) {
	command(t, a, "ip address add 10.0.10.10/24 dev eth0; ip address add 10.0.20.10/24 dev eth0")
	command(t, b, "modprobe 8021q; for v in 10 20; do ip link add link eth0 name eth0.$v type vlan id $v; "+
		"ip link set eth0.$v up; ip address add 10.0.$v.11/24 dev eth0.$v; done")
	const untagged, tagged10, tagged20 = "10.0.0.11", "10.0.10.11", "10.0.20.11"
	for _, c := range []struct {
		a, b    string // modes
		reached []string
	}{
		{"none", "none", []string{untagged}},
		{"access 10", "none", nil},
		{"access 10", "access 10", []string{untagged}},
		{"access 10", "access 20", nil},
		{"access 10", "trunk 10,20", []string{tagged10}},
		{"access 20", "trunk 10,20", []string{tagged20}},
		{"access 20", "trunk 10", nil},
		{"access 20", "trunk 10 --native=20", []string{untagged}},
		{"isolated 100 201", "promiscuous 100 201-202", []string{untagged}},
		{"isolated 100 201", "isolated 100 201", nil},
		{"community 100 202", "community 100 202", []string{untagged}},
		{"none", "none", []string{untagged}},
	} {
		for vm, mode := range map[string]string{"a": c.a, "b": c.b} {
			words := strings.Fields(mode)
			d.polder(t, append([]string{"vlan", "set", words[0], vm}, words[1:]...)...)
		}
		command(t, a, "ip neigh flush dev eth0")
		got := command(t, a, "for ip in 10.0.0.11 10.0.10.11 10.0.20.11; do ping -c 1 -W 1 $ip >/dev/null && echo $ip; done; true")
		if want := strings.Join(c.reached, "\n"); got != want {
			t.Errorf("a is %s, b is %s: a reaches %q, want %q", c.a, c.b, got, want)
		}
	}
}

package vswitch_test

import (
	"fmt"
	"net/netip"

	"polder/vswitch"
)

// screen is a port that prints what it is given.
type screen string

func (s screen) Deliver(frames []*vswitch.Frame) int {
	for _, f := range frames {
		fmt.Printf("%s gets %q\n", s, f.Head[14:])
	}
	return len(frames)
}

// Three guests on a switch. The first frame goes to everybody, since nobody
// knows where bob is. The answer goes to alice alone, whom the switch has heard.
func Example() {
	lan := vswitch.New(vswitch.Config{Name: "LAN"})
	defer lan.Close()

	ways := map[string]*vswitch.Ingress{}
	for _, name := range []string{"alice", "bob", "carol"} {
		member, err := lan.Join(name, screen(name), vswitch.PortOptions{})
		if err != nil {
			fmt.Println(err)
			return
		}
		ways[name] = member.NewIngress()
	}

	alice := vswitch.MAC{0x00, 0x15, 0x5d, 0, 0, 0x0a}
	bob := vswitch.MAC{0x00, 0x15, 0x5d, 0, 0, 0x0b}
	send := func(from string, dst, src vswitch.MAC, payload string) {
		b := append(dst[:], src[:]...)
		b = append(b, 0x88, 0xb5) // EtherType for experiments
		b = append(b, payload...)
		ways[from].Forward([]vswitch.Frame{{Head: b, Len: len(b)}})
	}
	send("alice", bob, alice, "hello, bob")
	send("bob", alice, bob, "hello, alice")

	for _, e := range lan.FDB() {
		fmt.Println(e.MAC, "is behind", e.Port)
	}
	// Output:
	// bob gets "hello, bob"
	// carol gets "hello, bob"
	// alice gets "hello, alice"
	// 00:15:5d:00:00:0a is behind alice
	// 00:15:5d:00:00:0b is behind bob
}

// A guest that plays router and DHCP server, behind a closed port with guards.
func ExamplePortOptions() {
	lan := vswitch.New(vswitch.Config{Name: "LAN"})
	defer lan.Close()
	rogue := vswitch.MAC{0x00, 0x15, 0x5d, 0, 0, 0x0a}
	port, err := lan.Join("rogue", screen("rogue"), vswitch.PortOptions{
		MACs:      []vswitch.MAC{rogue},
		DHCPGuard: true,
		ACL: []vswitch.Rule{
			{Action: vswitch.Meter, EtherType: 0x88b5},
			{Action: vswitch.Deny, Destination: netip.MustParsePrefix("10.0.0.0/8")},
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	if _, err := lan.Join("bob", screen("bob"), vswitch.PortOptions{}); err != nil {
		fmt.Println(err)
		return
	}

	send := func(src vswitch.MAC, payload string) {
		b := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, src[:]...)
		b = append(b, payload...)
		port.NewIngress().Forward([]vswitch.Frame{{Head: b, Len: len(b)}})
	}
	ip := "\x08\x00\x45\x00\x00\x1c\x00\x00\x00\x00\x40\x11\x00\x00\xc0\xa8\x00\x01"
	send(rogue, "\x88\xb5hello")
	send(rogue, ip+"\xff\xff\xff\xff\x00\x43\x00\x44\x00\x08\x00\x00") // port 67 to 68
	send(rogue, ip+"\x0a\x00\x00\x01\x10\x00\x00\x35\x00\x08\x00\x00") // to 10.0.0.1
	send(vswitch.MAC{2}, "\x88\xb5hello")

	st := port.Stats()
	for _, r := range vswitch.DropReasons() {
		if n := st.Drops[r]; n > 0 {
			fmt.Println(r, n)
		}
	}
	fmt.Println(port.RuleCounts())
	// Output:
	// bob gets "hello"
	// mac-spoofing 1
	// dhcp-guard 1
	// acl 1
	// [{1 19} {1 42}]
}

package vswitch_test

import (
	"fmt"

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

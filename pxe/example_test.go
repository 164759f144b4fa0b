package pxe_test

import (
	"fmt"
	"net/netip"

	"polder/pxe"
	"polder/vswitch"
)

// What a guest boots is decided by a pure function.
func ExamplePolicy_Decide() {
	p := pxe.Policy{
		Server: netip.MustParseAddr("10.21.140.1"),
		Rules:  []pxe.BootRule{{Match: pxe.Match{MAC: "00:15:5d:*"}, Kernel: "linux", Initrd: []string{"initrd.gz"}}},
		Exists: func(name string) bool { return name == "undionly.kpxe" },
	}
	rom := pxe.Client{MAC: vswitch.MAC{0x00, 0x15, 0x5d, 1, 2, 3}, Arch: pxe.ArchBIOS, VendorClass: "PXEClient:Arch:00000:UNDI:002001"}
	fmt.Println(p.Decide(rom).File)
	rom.UserClass = "iPXE" // it comes back
	fmt.Println(p.Decide(rom).File)
	// Output:
	// undionly.kpxe
	// rule-0.ipxe
}

// A service takes a port of a switch; guests take others.
func Example() {
	sw := vswitch.New(vswitch.Config{Name: "default"})
	defer sw.Close()
	server, err := pxe.New(pxe.Config{
		Address:   netip.MustParsePrefix("10.21.140.1/24"),
		MAC:       vswitch.MAC{0x00, 0x15, 0x5d, 0, 0, 1},
		PoolFirst: netip.MustParseAddr("10.21.140.100"),
		PoolLast:  netip.MustParseAddr("10.21.140.199"),
		Events:    func(e pxe.Event) { fmt.Println(e.Client.MAC, e.Kind) },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	member, err := sw.Join("pxe", server, vswitch.PortOptions{})
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := server.Start(member.NewIngress()); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(len(server.Leases()), "leases")
	server.Close() // first: it still sends
	member.Leave()
	// Output: 0 leases
}

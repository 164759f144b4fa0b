package vhostuser_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"polder/device/vhostuser"
	"polder/device/vhostuser/vhostusertest"
)

// A server offers a device; a front end, here in place of QEMU, passes memory and a ring, and takes the ring back.
func Example() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "nic.sock")
	dev := newFake()
	server, err := vhostuser.Listen(path, dev, slog.New(slog.DiscardHandler), "guest 1")
	if err != nil {
		fmt.Println(err)
		return
	}
	done := make(chan error)
	go func() { done <- server.Serve(context.Background()) }()

	frontEnd, err := vhostusertest.Dial(path)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(frontEnd.Connect(vhostuser.ProtocolAll), frontEnd.SetFeatures(vhostusertest.FeatureVersion1))
	mem, err := vhostusertest.NewMemory(0, 1<<20)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer mem.Close()
	ring, _, err := vhostusertest.NewVring(mem, 0, 256, 0)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer ring.Close()
	fmt.Println(frontEnd.SetMemTable(mem), frontEnd.StartVring(ring), frontEnd.StopVring(ring))
	frontEnd.Close()
	<-dev.gone

	server.Close()
	fmt.Println(<-done)
	for _, call := range dev.asked()[1:] { // the first is Attach
		fmt.Println(call)
	}
	// Output:
	// <nil> <nil>
	// <nil> <nil> <nil>
	// <nil>
	// features 0x100000000
	// memory [0x0+0x100000 uva 0x7f0000000000 offset 0x0 file 0x100000]
	// start 0: num 256 base 0x0 desc 0x0 avail 0x1000 used 0x1240 enabled true log {false 0} files [kick]
	// call 0 [call]
	// stop 0
	// detach: EOF
}

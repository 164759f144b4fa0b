package vfiouser_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"polder/device/vfiouser"
	"polder/device/vfiouser/vfiousertest"
)

// A server offers a device; a client, here in place of QEMU, writes a register and reads it back.
func Example() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "nic.sock")
	server, err := vfiouser.Listen(path, newFake(), slog.New(slog.DiscardHandler), "guest 1")
	if err != nil {
		fmt.Println(err)
		return
	}
	done := make(chan error)
	go func() { done <- server.Serve(context.Background()) }()

	client, err := vfiousertest.Dial(path)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(client.Handshake())
	fmt.Println(client.RegionWrite(0, 0x28, []byte{1, 2, 3, 4}))
	csr5 := make([]byte, 4)
	fmt.Println(client.RegionRead(0, 0x28, csr5), csr5)
	client.Close()

	server.Close()
	fmt.Println(<-done)
	// Output:
	// <nil>
	// <nil>
	// <nil> [1 2 3 4]
	// <nil>
}

package guestmem_test

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"polder/device/guestmem"
)

// A device copies into guest memory, then looks at it in place.
func Example() {
	fd, err := unix.MemfdCreate("ram", unix.MFD_CLOEXEC) // a hypervisor would pass it
	if err != nil {
		fmt.Println(err)
		return
	}
	ram := os.NewFile(uintptr(fd), "ram")
	if err := ram.Truncate(1 << 20); err != nil {
		fmt.Println(err)
		return
	}

	var mem guestmem.Map
	defer mem.Close()
	if err := mem.Map(guestmem.Region{GPA: 0x100000, Size: 1 << 20, File: ram, Read: true, Write: true}); err != nil {
		fmt.Println(err)
		return
	}
	ram.Close() // the mapping does not need it

	fault := guestmem.Guard(func() {
		fmt.Println(mem.Write(0x100040, []byte("descriptor")))
		fmt.Printf("%s\n", mem.Window(0x100040, 10, false))
		fmt.Println(mem.Write(0x1ffffe, []byte("over the end")))
	})
	fmt.Println(fault)
	// Output:
	// <nil>
	// descriptor
	// guest memory not mapped at 0x200000
	// <nil>
}

package guestmem

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// A fault in one guest's memory is that guest's, whoever touched it.
func TestOwns(t *testing.T) {
	one, other := new(Map), new(Map)
	files := map[*Map]*os.File{}
	for _, m := range []*Map{one, other} {
		fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "guest")
		defer f.Close()
		if err := f.Truncate(1 << 16); err != nil {
			t.Fatal(err)
		}
		if err := m.Map(Region{Size: 1 << 16, File: f, Read: true, Write: true}); err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		files[m] = f
	}
	w := one.Window(0x8000, 16, false)
	if err := files[one].Truncate(0); err != nil {
		t.Fatal(err)
	}
	var addr uintptr
	var fault bool
	err := Guard(func() {
		defer func() {
			p := recover()
			addr, fault = FaultAddress(p)
			panic(p)
		}()
		_ = w[3]
		w[3]++
	})
	if err == nil || !fault {
		t.Fatalf("no fault: %v", err)
	}
	if !one.Owns(addr) || other.Owns(addr) {
		t.Errorf("the fault is charged to the wrong guest: one %v, other %v", one.Owns(addr), other.Owns(addr))
	}
	if _, ok := FaultAddress("a bug"); ok {
		t.Error("another panic passes for a fault")
	}
}

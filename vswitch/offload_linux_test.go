package vswitch_test

import (
	"runtime/debug"
	"slices"
	"syscall"
	"testing"

	"polder/vswitch"
)

// TestOffloadFault has a frame whose last page is gone when it is cut: some
// pieces arrive, the fault is the sender's to recover from, and its next
// batch begins clean.
func TestOffloadFault(t *testing.T) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	p := packet{dst: broadcast, payload: 65000}
	whole := p.bytes()
	page := syscall.Getpagesize()
	size := (len(whole) + page - 1) / page * page
	memory, err := syscall.Mmap(-1, 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Munmap(memory)
	copy(memory, whole)
	gone := size - page
	if err := syscall.Mprotect(memory[gone:], syscall.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	f := vswitch.Frame{
		Head:    slices.Clone(whole[:vswitch.HeadLen]),
		Body:    [][]byte{memory[vswitch.HeadLen:len(whole)]},
		Len:     len(whole),
		Offload: p.gso(650),
	}
	for _, o := range []vswitch.Offload{p.gso(650), p.checksum()} {
		f.Offload = o
		_, a, b, _ := pair(t, 256, 0)
		func() {
			defer func() {
				if recover() == nil {
					t.Error("the fault did not reach the sender")
				}
			}()
			a.Forward([]vswitch.Frame{frame(broadcast, mac(1), 1), f})
		}()
		for i, piece := range b.Take() {
			if i == 0 && number(piece) == 1 {
				continue
			}
			if _, err := parse(piece); err != nil {
				t.Errorf("piece %d: %v", i, err)
			}
		}
		a.Forward([]vswitch.Frame{lent(whole, p.gso(32500)), frame(broadcast, mac(1), 2)})
		got := b.Take()
		if len(got) != 3 || number(got[2]) != 2 {
			t.Fatalf("%d frames arrived, want 3", len(got))
		}
		if err := checkPieces(got[:2], whole, 32500); err != nil {
			t.Error(err)
		}
	}
}

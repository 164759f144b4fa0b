package virtqtest

import (
	"fmt"
	"syscall"
	"testing"
	"unsafe"
)

// RAM is guest memory. It implements the memory that queues look addresses up in. It is mapped
// like a real guest's memory, not in Go's heap, between pages that cannot be accessed: who leaves it is caught
// by a fault. The race detector does not look at such memory; the drivers of real guests are not its
// business either.
type RAM struct {
	regions []region
	next    uint64 // where Alloc goes on, in the first region
}

type region struct {
	gpa         uint64
	mem         []byte
	read, write bool
}

// NewRAM returns RAM of one region of size bytes at gpa, to read and write, until the test ends.
func NewRAM(tb testing.TB, gpa uint64, size int) *RAM {
	r := &RAM{next: gpa}
	r.AddRegion(tb, gpa, size, true, true)
	return r
}

// NewSharedRAM returns RAM of one region at gpa, to read and write, which is mem: memory that a device somewhere else
// has too. It stays the caller's.
func NewSharedRAM(gpa uint64, mem []byte) *RAM {
	return &RAM{next: gpa, regions: []region{{gpa, mem, true, true}}}
}

// AddRegion adds a region. It does not overlap others, and is not contiguous with them here even
// if it is in the guest. read and write say what the device may do.
func (r *RAM) AddRegion(tb testing.TB, gpa uint64, size int, read, write bool) {
	tb.Helper()
	page := syscall.Getpagesize()
	room := (size + page - 1) / page * page
	all, err := syscall.Mmap(-1, 0, room+2*page, syscall.PROT_NONE, syscall.MAP_ANON|syscall.MAP_SHARED)
	if err != nil {
		tb.Fatalf("mmap: %v", err)
	}
	tb.Cleanup(func() {
		if err := syscall.Munmap(all); err != nil {
			tb.Errorf("munmap: %v", err)
		}
	})
	inner := all[page : page+room]
	if err := syscall.Mprotect(inner, syscall.PROT_READ|syscall.PROT_WRITE); err != nil {
		tb.Fatalf("mprotect: %v", err)
	}
	r.regions = append(r.regions, region{gpa, inner[:size:size], read, write})
}

// RemoveRegion takes the region at gpa away from the device. Its memory stays until the test ends.
func (r *RAM) RemoveRegion(gpa uint64) {
	for i := range r.regions {
		if r.regions[i].gpa == gpa {
			r.regions = append(r.regions[:i], r.regions[i+1:]...)
			return
		}
	}
	panic(fmt.Sprintf("virtqtest: no region at %#x", gpa))
}

// Window is the device's access to memory.
func (r *RAM) Window(gpa uint64, n int, write bool) []byte {
	if n <= 0 {
		return nil
	}
	for i := range r.regions {
		g := &r.regions[i]
		if off := gpa - g.gpa; off < uint64(len(g.mem)) && uint64(n) <= uint64(len(g.mem))-off {
			if write && !g.write || !write && !g.read {
				return nil
			}
			return g.mem[off : off+uint64(n) : off+uint64(n)]
		}
	}
	return nil
}

// Bytes is the guest's access to memory. It panics if there is none.
func (r *RAM) Bytes(gpa uint64, n int) []byte {
	for _, g := range r.regions {
		if off := gpa - g.gpa; off < uint64(len(g.mem)) && uint64(n) <= uint64(len(g.mem))-off {
			return g.mem[off : off+uint64(n) : off+uint64(n)]
		}
	}
	panic(fmt.Sprintf("virtqtest: no memory at %#x+%#x", gpa, n))
}

// Alloc returns the address of n bytes of the first region that were not returned before, at a multiple of align. It
// panics if there are no more.
func (r *RAM) Alloc(n int, align uint64) uint64 {
	gpa := (r.next + align - 1) / align * align
	r.Bytes(gpa, n)
	r.next = gpa + uint64(n)
	return gpa
}

// Contains reports whether b lies in memory that the device may access so.
func (r *RAM) Contains(b []byte, write bool) bool {
	p := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	for _, g := range r.regions {
		first := uintptr(unsafe.Pointer(unsafe.SliceData(g.mem)))
		if p >= first && p-first+uintptr(len(b)) <= uintptr(len(g.mem)) {
			return write && g.write || !write && g.read
		}
	}
	return false
}

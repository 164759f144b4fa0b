package guestmem

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Region is one range of guest-physical addresses, as the hypervisor announces it.
type Region struct {
	GPA  uint64 // first guest-physical address
	Size uint64 // bytes, not 0; GPA+Size may be 2^64 but not more

	// File holds the memory, from byte Offset on, which is a multiple of the page size.
	// It is used only for the duration of Map: the caller keeps it, and may close it
	// afterwards. A nil File announces a range that exists but cannot be reached by DMA.
	File   *os.File
	Offset uint64

	Read, Write bool // what a device may do with the range
}

// last returns the last address of the region. It is meaningful once check has passed.
func (r Region) last() uint64 { return r.GPA + (r.Size - 1) }

// check finds what is wrong with the numbers of r by themselves.
func (r Region) check() error {
	switch {
	case r.Size == 0:
		return fmt.Errorf("region at %#x is empty: %w", r.GPA, unix.EINVAL)
	case r.last() < r.GPA:
		return fmt.Errorf("region %#x+%#x wraps around: %w", r.GPA, r.Size, unix.EINVAL)
	case r.File == nil:
		return nil
	case r.Offset%uint64(os.Getpagesize()) != 0:
		return fmt.Errorf("region %#x+%#x: file offset %#x is not on a page: %w", r.GPA, r.Size, r.Offset, unix.EINVAL)
	case r.Offset+r.Size < r.Offset:
		return fmt.Errorf("region %#x+%#x: file offset %#x wraps around: %w", r.GPA, r.Size, r.Offset, unix.EINVAL)
	}
	return nil
}

// span is a region in place: the address range and the memory that shows it.
type span struct {
	first, last uint64   // guest-physical, inclusive
	mem         []byte   // last-first+1 bytes; nil if the range is not reachable by DMA
	read, write bool     // what the device may do
	mapping     *mapping // holds mem; nil if mem is
}

// may reports whether the device can reach the memory of s to read, or to write, it.
func (s *span) may(write bool) bool {
	if write {
		return s.write && s.mem != nil
	}
	return s.read && s.mem != nil
}

package device

import (
	"sync/atomic"
	"unsafe"

	"polder/device/guestmem"
	"polder/device/vhostuser"
)

// dirtyLog is the bitmap of pages that a hypervisor wants to know written, while it migrates
// the guest. It is memory that is shared, like the guest's.
type dirtyLog struct {
	mem  guestmem.Map
	bits []byte // nil: no log
}

// set starts to use the log l, or none.
func (d *dirtyLog) set(l *vhostuser.Log) error {
	d.bits = nil
	if err := d.mem.Close(); err != nil || l == nil {
		return err
	}
	if err := d.mem.Map(guestmem.Region{Size: l.Size, File: l.File, Offset: l.Offset, Read: true, Write: true}); err != nil {
		return err
	}
	d.bits = d.mem.Window(0, int(l.Size), true)
	return nil
}

// owns reports whether addr, an address in this process, lies in the log.
func (d *dirtyLog) owns(addr uintptr) bool { return d.mem.Owns(addr) }

// mark notes n bytes at guest-physical address gpa as written. The hypervisor reads and clears bits at the same time.
// What lies beyond the log is memory that came later, and is sent anyway.
func (d *dirtyLog) mark(gpa uint64, n int) {
	const page = 4096
	for at := gpa / page; at <= (gpa+uint64(n)-1)/page && at/8 < uint64(len(d.bits)); at++ {
		b := unsafe.Pointer(&d.bits[at/8])
		odd := uintptr(b) & 3 // of an aligned word, which lies in the same page
		atomic.OrUint32((*uint32)(unsafe.Add(b, -int(odd))), 1<<(8*uint32(odd)+uint32(at%8)))
	}
}

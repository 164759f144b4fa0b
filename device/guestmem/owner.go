package guestmem

import "unsafe"

// FaultAddress tells whether p, a recovered panic, is a fault in mapped memory, and at which
// address. The goroutine must have had debug.SetPanicOnFault on.
func FaultAddress(p any) (addr uintptr, ok bool) {
	f, ok := p.(memoryFault)
	if !ok {
		return 0, false
	}
	return f.Addr(), true
}

// Owns reports whether addr, an address in this process, lies in memory that m maps. One
// goroutine often touches the memory of two guests, and a fault must be charged to the right one.
func (m *Map) Owns(addr uintptr) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, mp := range m.mappings {
		start := uintptr(unsafe.Pointer(unsafe.SliceData(mp.mem)))
		if addr-start < uintptr(len(mp.mem)) {
			return true
		}
	}
	return false
}

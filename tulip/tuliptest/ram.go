package tuliptest

import (
	"encoding/binary"
	"fmt"
)

// RAM is guest memory and the bus in front of it: a tulip.Bus that notes what the chip
// does. Its memory is Bytes, at guest addresses from Base on.
type RAM struct {
	Base  uint32
	Bytes []byte

	// Indirect makes Window return nil, as for memory that is not directly mapped, so
	// that every access goes through Read and Write.
	Indirect bool

	// ReadOnly makes the memory refuse the chip's stores, as a ROM does.
	ReadOnly bool

	INTA    bool     // level of the interrupt pin
	Edges   int      // how often it changed
	Aborted []Access // the first 16 accesses that were refused with ErrAbort
}

// Access is a bus access of the chip.
type Access struct {
	Addr  uint32
	Len   int
	Write bool
}

// ErrAbort is a bus access that the memory refuses.
type ErrAbort Access

func (e ErrAbort) Error() string {
	return fmt.Sprintf("tuliptest: no memory at %#x+%#x", e.Addr, e.Len)
}

// NewRAM returns size bytes of zeroed memory at base.
func NewRAM(base uint32, size int) *RAM {
	return &RAM{Base: base, Bytes: make([]byte, size)}
}

// at returns memory [addr, addr+n), or nil if it is not all there.
func (r *RAM) at(addr uint32, n int) []byte {
	off := int64(addr) - int64(r.Base)
	if off < 0 || n < 0 || off+int64(n) > int64(len(r.Bytes)) {
		return nil
	}
	return r.Bytes[off : off+int64(n) : off+int64(n)]
}

// Window implements tulip.Bus.
func (r *RAM) Window(addr uint32, n int) []byte {
	if r.Indirect || r.ReadOnly {
		return nil
	}
	return r.at(addr, n)
}

// Read implements tulip.Bus.
func (r *RAM) Read(addr uint32, p []byte) error {
	m := r.at(addr, len(p))
	if m == nil {
		return r.abort(Access{Addr: addr, Len: len(p)})
	}
	copy(p, m)
	return nil
}

// Write implements tulip.Bus.
func (r *RAM) Write(addr uint32, p []byte) error {
	m := r.at(addr, len(p))
	if m == nil || r.ReadOnly {
		return r.abort(Access{Addr: addr, Len: len(p), Write: true})
	}
	copy(m, p)
	return nil
}

func (r *RAM) abort(a Access) error {
	if len(r.Aborted) < 16 {
		r.Aborted = append(r.Aborted, a)
	}
	return ErrAbort(a)
}

// SetINTA implements tulip.Bus. It panics if the level does not change: the chip must
// not repeat itself.
func (r *RAM) SetINTA(asserted bool) {
	if asserted == r.INTA {
		panic("tuliptest: SetINTA without a change")
	}
	r.INTA = asserted
	r.Edges++
}

// ReadMem is the guest's own load: it fills p from addr and panics where no memory is.
func (r *RAM) ReadMem(addr uint32, p []byte) { copy(p, r.must(addr, len(p))) }

// WriteMem is the guest's own store: it writes p to addr and panics where no memory is.
func (r *RAM) WriteMem(addr uint32, p []byte) { copy(r.must(addr, len(p)), p) }

func (r *RAM) must(addr uint32, n int) []byte {
	m := r.at(addr, n)
	if m == nil {
		panic(ErrAbort{Addr: addr, Len: n})
	}
	return m
}

// Uint32 loads a little-endian longword.
func (r *RAM) Uint32(addr uint32) uint32 { return binary.LittleEndian.Uint32(r.must(addr, 4)) }

// PutUint32 stores a little-endian longword.
func (r *RAM) PutUint32(addr, v uint32) { binary.LittleEndian.PutUint32(r.must(addr, 4), v) }

//go:build amd64 || arm64

// Virtio's words are little-endian and so are these processors, so that a word of the ring is
// a word of the machine. Others need this file written anew.

package virtq

import (
	"sync/atomic"
	"unsafe"
)

// This file is the only one of the package with unsafe in it. It turns the bytes of a ring into
// slices of wider words, and pointers to those that are shared by atomic operations.
//
// Why that is safe: the bytes are a window into a shared mapping, not Go's heap, so the collector
// neither moves nor frees them; the owner keeps them mapped while the Queue is in use. The slices
// cover the window and no more, so that Go checks every later index. The words hold no
// pointers. Queue.place checked that the words which are used atomically are aligned, as
// arm64 demands and amd64 needs to be atomic across cache lines.
//
// A load of a slice element into a variable is one load instruction: the compiler keeps
// or spills the variable, it does not go back to memory. So a value that
// was checked cannot change between the check and its use.

// aligned reports whether b starts at a multiple of n in this process's memory.
func aligned(b []byte, n uintptr) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(b)))%n == 0
}

func words16(b []byte) []uint16 {
	return unsafe.Slice((*uint16)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/2)
}

func words32(b []byte) []uint32 {
	return unsafe.Slice((*uint32)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/4)
}

func words64(b []byte) []uint64 {
	return unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/8)
}

// field16 is a 16-bit field which the driver writes and we only read, as part of the aligned 32-bit
// word around it. The other half of the word is thrown away. It may lie up to two bytes outside
// the window, as an available ring needs no more than even addresses (virtio 2.7); it is in
// the same page even so, hence mapped.
type field16 struct {
	word  *uint32
	shift uint
}

// fieldAt returns the field in the first two bytes of b, at an even address.
func fieldAt(b []byte) field16 {
	p := unsafe.Pointer(unsafe.SliceData(b))
	odd := uintptr(p) & 2
	return field16{(*uint32)(unsafe.Add(p, -int(odd))), uint(odd) * 8}
}

// load acquires. An aligned 32-bit load is atomic against a 16-bit store in it on both processors.
func (f field16) load() uint16 { return uint16(atomic.LoadUint32(f.word) >> f.shift) }

// flagsWord returns the second half of descriptor i of a packed ring's words: buffer id
// and flags, for a load that acquires.
func flagsWord(desc []uint64, i int) *uint32 {
	return (*uint32)(unsafe.Add(unsafe.Pointer(&desc[2*i+1]), 4))
}

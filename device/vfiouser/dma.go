package vfiouser

import (
	"encoding/binary"
	"os"

	"golang.org/x/sys/unix"
)

// DMARegion is a range of guest memory that a client offers for DMA.
type DMARegion struct {
	IOVA, Size  uint64 // guest-physical, in bytes; not empty, IOVA+Size is at most 2^64
	Read, Write bool   // what the device may do

	// File shows the memory from byte Offset on. It belongs to the device, which closes it, also when it
	// refuses the region. It is nil for memory that the client did not share,
	// such as a ROM, or all RAM of a QEMU without memory-backend-memfd,share=on.
	File   *os.File
	Offset uint64
}

// The payloads of DMA_MAP and DMA_UNMAP, and their flags.
const (
	dmaMapSize   = 32 // u32 argsz, u32 flags, u64 offset, u64 iova, u64 size
	dmaMapRead   = 1 << 0
	dmaMapWrite  = 1 << 1
	dmaUnmapSize = 24 // u32 argsz, u32 flags, u64 iova, u64 size
	dmaUnmapAll  = 1 << 1
)

// dmaMap serves DMA_MAP. Its reply has no payload.
func (c *conn) dmaMap(body []byte) (int, error) {
	if len(c.fds) > 1 {
		return 0, c.h.malformed("%d descriptors, want at most 1", len(c.fds))
	}
	flags := binary.LittleEndian.Uint32(body[4:])
	r := DMARegion{
		Offset: binary.LittleEndian.Uint64(body[8:]),
		IOVA:   binary.LittleEndian.Uint64(body[16:]),
		Size:   binary.LittleEndian.Uint64(body[24:]),
		Read:   flags&dmaMapRead != 0,
		Write:  flags&dmaMapWrite != 0,
	}
	if flags&^(dmaMapRead|dmaMapWrite) != 0 || wraps(r.IOVA, r.Size) || wraps(r.Offset, r.Size) {
		return 0, unix.EINVAL
	}
	if files := c.takeFiles("guest memory"); len(files) > 0 {
		r.File = files[0]
	}
	return 0, c.dev.MapDMA(r)
}

// dmaUnmap serves DMA_UNMAP. Its reply repeats the request.
func (c *conn) dmaUnmap(body []byte) (int, error) {
	flags := binary.LittleEndian.Uint32(body[4:])
	iova := binary.LittleEndian.Uint64(body[8:])
	size := binary.LittleEndian.Uint64(body[16:])
	switch {
	case flags == 0 && !wraps(iova, size):
	case flags == dmaUnmapAll && iova == 0 && size == 0:
	default:
		return 0, unix.EINVAL
	}
	return copy(c.reserve(dmaUnmapSize), body), c.dev.UnmapDMA(iova, size)
}

// wraps reports whether size bytes from start on are none, or go past 2^64.
func wraps(start, size uint64) bool {
	return size == 0 || start+(size-1) < start
}

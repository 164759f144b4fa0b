package vfiouser

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// The payloads of GET_INFO, GET_REGION_INFO, REGION_READ, REGION_WRITE and REGION_WRITE_MULTI. Of the
// accesses it is the part before the data.
const (
	infoSize         = 16 // u32 argsz, u32 flags, u32 regions, u32 IRQs
	infoReset        = 1 << 0
	infoPCI          = 1 << 1
	regionInfoSize   = 32 // u32 argsz, u32 flags, u32 index, u32 capability offset, u64 size, u64 offset
	regionAccessSize = 16 // u64 offset, u32 region, u32 count
	multiSize        = 8  // u64 number of entries
	multiEntrySize   = 24 // u64 offset, u32 region, u32 count, 8 bytes of data
	maxMultiEntries  = 200
)

// getInfo serves GET_INFO.
func (c *conn) getInfo(body []byte) (int, error) {
	if binary.LittleEndian.Uint32(body) < infoSize {
		return 0, unix.EINVAL
	}
	p := c.reserve(infoSize)
	binary.LittleEndian.PutUint32(p[0:], infoSize)
	binary.LittleEndian.PutUint32(p[4:], infoPCI|infoReset)
	binary.LittleEndian.PutUint32(p[8:], NumRegions)
	binary.LittleEndian.PutUint32(p[12:], NumIRQs)
	return len(p), nil
}

// getRegionInfo serves GET_REGION_INFO. There are no capabilities, hence the reply is as long as the request. There
// is no mmap either, hence no offset: with a region that can be mapped, QEMU would post no
// more writes, and stop using the mapping after the first interrupt.
func (c *conn) getRegionInfo(body []byte) (int, error) {
	argsz := binary.LittleEndian.Uint32(body[0:])
	index := binary.LittleEndian.Uint32(body[8:])
	if argsz < regionInfoSize || index >= NumRegions {
		return 0, unix.EINVAL
	}
	r := c.info.Regions[index]
	p := c.reserve(regionInfoSize)
	binary.LittleEndian.PutUint32(p[0:], regionInfoSize)
	binary.LittleEndian.PutUint32(p[4:], r.Flags)
	binary.LittleEndian.PutUint32(p[8:], index)
	binary.LittleEndian.PutUint32(p[12:], 0)
	binary.LittleEndian.PutUint64(p[16:], r.Size)
	binary.LittleEndian.PutUint64(p[24:], 0)
	return len(p), nil
}

// access is one access to a region.
type access struct {
	off    uint64
	region uint32
	count  uint32 // bytes
}

func decodeAccess(b []byte) access {
	return access{
		off:    binary.LittleEndian.Uint64(b[0:]),
		region: binary.LittleEndian.Uint32(b[8:]),
		count:  binary.LittleEndian.Uint32(b[12:]),
	}
}

func (a access) encode(b []byte) {
	binary.LittleEndian.PutUint64(b[0:], a.off)
	binary.LittleEndian.PutUint32(b[8:], a.region)
	binary.LittleEndian.PutUint32(b[12:], a.count)
}

// permitted reports whether a lies inside a region that has the flag.
func (c *conn) permitted(a access, flag uint32) bool {
	if a.region >= NumRegions || a.count > maxData {
		return false
	}
	r := &c.info.Regions[a.region]
	return r.Flags&flag != 0 && a.off <= r.Size && uint64(a.count) <= r.Size-a.off
}

// regionRead serves REGION_READ, whose reply is the request with the data behind it.
func (c *conn) regionRead(body []byte) (int, error) {
	a := decodeAccess(body)
	if !c.permitted(a, RegionReadable) {
		return 0, unix.EINVAL
	}
	p := c.reserve(regionAccessSize + int(a.count))
	a.encode(p)
	data := p[regionAccessSize:]
	clear(data)
	return len(p), c.dev.ReadRegion(int(a.region), a.off, data)
}

// regionWrite serves REGION_WRITE, whose reply is the request without its data.
func (c *conn) regionWrite(body []byte) (int, error) {
	if len(body) < regionAccessSize {
		return 0, c.h.malformed("payload of %d bytes, want at least %d", len(body), regionAccessSize)
	}
	a, data := decodeAccess(body), body[regionAccessSize:]
	if uint64(a.count) != uint64(len(data)) {
		return 0, c.h.malformed("count %d, but %d bytes of data", a.count, len(data))
	}
	if !c.permitted(a, RegionWritable) {
		return 0, unix.EINVAL
	}
	p := c.reserve(regionAccessSize)
	a.encode(p)
	return len(p), c.dev.WriteRegion(int(a.region), a.off, data)
}

// regionWriteMulti serves REGION_WRITE_MULTI: writes of up to 8 bytes each, which QEMU always posts. The reply, for
// a client that wants one, tells how many were done; the first that fails ends the message.
func (c *conn) regionWriteMulti(body []byte) (int, error) {
	if len(body) < multiSize {
		return 0, c.h.malformed("payload of %d bytes, want at least %d", len(body), multiSize)
	}
	n := binary.LittleEndian.Uint64(body)
	entries := body[multiSize:]
	if n > maxMultiEntries || n*multiEntrySize != uint64(len(entries)) {
		return 0, c.h.malformed("%d writes in %d bytes, want at most %d of %d bytes", n, len(entries), maxMultiEntries, multiEntrySize)
	}
	for ; len(entries) > 0; entries = entries[multiEntrySize:] {
		a, data := decodeAccess(entries), entries[regionAccessSize:multiEntrySize]
		if int64(a.count) > int64(len(data)) {
			return 0, c.h.malformed("count %d in a write of at most %d bytes", a.count, len(data))
		}
		if !c.permitted(a, RegionWritable) {
			return 0, unix.EINVAL
		}
		if err := c.dev.WriteRegion(int(a.region), a.off, data[:a.count]); err != nil {
			return 0, err
		}
	}
	p := c.reserve(multiSize)
	binary.LittleEndian.PutUint64(p, n)
	return len(p), nil
}

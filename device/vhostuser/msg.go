package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrProtocol reports a message that is malformed or out of place. It is the cause given to
// [Backend.Detach], wrapped in a text that names the message and the value.
var ErrProtocol = errors.New("vhost-user protocol error")

// The sizes of things on the wire, in bytes (specification, "Payload").
const (
	headerSize = 12
	u64Size    = 8
	stateSize  = 8  // u32 index, u32 num
	addrSize   = 40 // u32 index, u32 flags, u64 descriptor, used, available, log
	regionSize = 32 // u64 guest address, size, user address, mmap offset
	tableSize  = 8  // u32 number of regions, u32 padding; the regions follow
	memRegSize = 8 + regionSize
	logSize    = 16 // u64 size, u64 offset

	// maxPayload bounds what is read of a message that we do not know.
	maxPayload = 4096

	// maxFDs is how many descriptors a message may carry: one for each region of a memory table.
	maxFDs = maxTable
)

const (
	maxTable = 8   // regions in one SET_MEM_TABLE
	maxSlots = 509 // regions altogether, as many as KVM has slots for on a PC

	// maxVrings is how many rings SET_VRING_KICK can name.
	maxVrings = 256

	// maxRing is the largest size of a ring (virtio 1.3, 2.7 and 2.8.10.1).
	maxRing = 32768
)

// request is the kind of a message.
type request uint32

// The requests that a front end may send and that we act on (specification, "Front-end message types").
const (
	reqGetFeatures         request = 1
	reqSetFeatures         request = 2
	reqSetOwner            request = 3
	reqResetOwner          request = 4
	reqSetMemTable         request = 5
	reqSetLogBase          request = 6
	reqSetLogFD            request = 7
	reqSetVringNum         request = 8
	reqSetVringAddr        request = 9
	reqSetVringBase        request = 10
	reqGetVringBase        request = 11
	reqSetVringKick        request = 12
	reqSetVringCall        request = 13
	reqSetVringErr         request = 14
	reqGetProtocolFeatures request = 15
	reqSetProtocolFeatures request = 16
	reqGetQueueNum         request = 17
	reqSetVringEnable      request = 18
	reqSendRARP            request = 19
	reqNetSetMTU           request = 20
	reqSetBackendReqFD     request = 21
	reqResetDevice         request = 34
	reqGetMaxMemSlots      request = 36
	reqAddMemReg           request = 37
	reqRemMemReg           request = 38
	reqSetStatus           request = 39
	reqGetStatus           request = 40
)

func (r request) String() string {
	if h, ok := handlers[r]; ok {
		return h.name
	}
	return fmt.Sprintf("request %d", uint32(r))
}

// Header flags.
const (
	flagVersionMask = 0x3
	flagVersion     = 0x1
	flagReply       = 0x4
	flagNeedReply   = 0x8
)

// header starts every message.
type header struct {
	req   request
	flags uint32
	size  uint32 // bytes of payload
}

// decodeHeader takes a header from the first headerSize bytes of b.
func decodeHeader(b []byte) header {
	return header{
		req:   request(binary.LittleEndian.Uint32(b[0:])),
		flags: binary.LittleEndian.Uint32(b[4:]),
		size:  binary.LittleEndian.Uint32(b[8:]),
	}
}

// append appends h to b.
func (h header) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(h.req))
	b = binary.LittleEndian.AppendUint32(b, h.flags)
	return binary.LittleEndian.AppendUint32(b, h.size)
}

// malformed returns an ErrProtocol that says what is wrong with the message of h.
func (h header) malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %v: %s", ErrProtocol, h.req, fmt.Sprintf(format, args...))
}

// check finds what is wrong with h as the start of a front end's request.
func (h header) check() error {
	switch {
	case h.flags&flagVersionMask != flagVersion:
		return h.malformed("version %d, want %d", h.flags&flagVersionMask, flagVersion)
	case h.flags&flagReply != 0:
		return h.malformed("a reply, but nothing was asked")
	case h.flags&^(flagVersionMask|flagNeedReply) != 0:
		return h.malformed("flags %#x are not those of a request", h.flags)
	case h.size > maxPayload:
		return h.malformed("payload of %d bytes, of at most %d", h.size, maxPayload)
	}
	return nil
}

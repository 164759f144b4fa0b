package vfiouser

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrProtocol reports a message that is malformed or out of place. It is the cause given to
// [Device.Detach], wrapped in a text that names the message and the value.
var ErrProtocol = errors.New("vfio-user protocol error")

// The sizes of things on the wire, in bytes.
const (
	headerSize  = 16
	versionSize = 4 // of the VERSION payload, without the capabilities

	// maxData bounds the data of one region access. It is max_data_xfer_size of our VERSION reply, and
	// must not be smaller than an expansion ROM, which is read at once.
	maxData = 1 << 20

	// maxMessage is the size of the largest message of use: a REGION_WRITE of maxData.
	maxMessage = headerSize + regionAccessSize + maxData

	// maxFDs is how many descriptors a message may carry: max_msg_fds of our VERSION reply.
	maxFDs = 8
)

// capabilities is our half of the VERSION exchange. QEMU allocates as much for the reply
// as its own VERSION message has, 214 bytes in all, and gives up on a longer one; and
// it warns about every capability it does not know.
const capabilities = `{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":1048576}}` + "\x00"

// command is the kind of a message.
type command uint16

// The commands that a client may send and that we act on. 6 (GET_REGION_IO_FDS), 14 and 17 upwards
// are refused like any unknown command, as are DMA_READ (11) and DMA_WRITE (12), which are a server's to send.
const (
	cmdVersion          command = 1
	cmdDMAMap           command = 2
	cmdDMAUnmap         command = 3
	cmdGetInfo          command = 4
	cmdGetRegionInfo    command = 5
	cmdGetIRQInfo       command = 7
	cmdSetIRQs          command = 8
	cmdRegionRead       command = 9
	cmdRegionWrite      command = 10
	cmdDeviceReset      command = 13
	cmdRegionWriteMulti command = 15
	cmdDeviceFeature    command = 16
)

var commandNames = map[command]string{
	cmdVersion: "VERSION", cmdDMAMap: "DMA_MAP", cmdDMAUnmap: "DMA_UNMAP", cmdGetInfo: "GET_INFO",
	cmdGetRegionInfo: "GET_REGION_INFO", cmdGetIRQInfo: "GET_IRQ_INFO", cmdSetIRQs: "SET_IRQS",
	cmdRegionRead: "REGION_READ", cmdRegionWrite: "REGION_WRITE", cmdDeviceReset: "DEVICE_RESET",
	cmdRegionWriteMulti: "REGION_WRITE_MULTI", cmdDeviceFeature: "DEVICE_FEATURE",
}

func (c command) String() string {
	if name, ok := commandNames[c]; ok {
		return name
	}
	return fmt.Sprintf("command %d", uint16(c))
}

// Header flags.
const (
	flagType    = 0xf // 0 is a command, 1 a reply
	flagReply   = 0x1
	flagNoReply = 0x10 // of a command: must not be answered, not even with an error
	flagError   = 0x20 // of a reply: the errno field is valid
)

// header starts every message.
type header struct {
	id    uint16 // chosen by the sender of the command, echoed by the reply
	cmd   command
	size  uint32 // bytes, header included
	flags uint32
	errno uint32 // a Linux errno, if flagError
}

// decodeHeader takes a header from the first headerSize bytes of b.
func decodeHeader(b []byte) header {
	return header{
		id:    binary.LittleEndian.Uint16(b[0:]),
		cmd:   command(binary.LittleEndian.Uint16(b[2:])),
		size:  binary.LittleEndian.Uint32(b[4:]),
		flags: binary.LittleEndian.Uint32(b[8:]),
		errno: binary.LittleEndian.Uint32(b[12:]),
	}
}

// encode puts h into the first headerSize bytes of b.
func (h header) encode(b []byte) {
	binary.LittleEndian.PutUint16(b[0:], h.id)
	binary.LittleEndian.PutUint16(b[2:], uint16(h.cmd))
	binary.LittleEndian.PutUint32(b[4:], h.size)
	binary.LittleEndian.PutUint32(b[8:], h.flags)
	binary.LittleEndian.PutUint32(b[12:], h.errno)
}

// malformed returns an ErrProtocol that says what is wrong with the message of h.
func (h header) malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %v message %d: %s", ErrProtocol, h.cmd, h.id, fmt.Sprintf(format, args...))
}

// check finds what is wrong with h as the start of a client's command.
func (h header) check() error {
	switch {
	case h.size < headerSize || h.size > maxMessage:
		return h.malformed("size %d is not between %d and %d", h.size, headerSize, maxMessage)
	case h.flags&flagType == flagReply:
		return h.malformed("a reply, but nothing was asked")
	case h.flags&^flagNoReply != 0:
		return h.malformed("flags %#x are not those of a command", h.flags)
	}
	return nil
}

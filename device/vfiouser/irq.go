package vfiouser

import (
	"encoding/binary"
	"os"

	"golang.org/x/sys/unix"
)

// IRQSet is what a client wants done with some interrupts of one index.
type IRQSet struct {
	Index, Start, Count uint32 // interrupts Start to Start+Count-1 of Index exist; Count may be 0

	Action IRQAction
	Data   IRQData

	// Bools has Count entries if Data is IRQBool: 0 leaves that interrupt alone. It is
	// valid until the call returns.
	Bools []byte

	// Files has Count eventfds if Data is IRQEventFD, or none to take away those that were set. They belong to the
	// device, which closes them, also when it refuses the set.
	Files []*os.File
}

// IRQAction is what to do. The values are those on the wire.
type IRQAction uint32

// The actions. With IRQEventFD they concern not the interrupt but the eventfd that will cause the action:
// IRQTrigger passes the one by which the device interrupts the guest. IRQTrigger with
// IRQNone and a Count of 0 takes all eventfds of the index away.
const (
	IRQMask    IRQAction = 1 << 3
	IRQUnmask  IRQAction = 1 << 4
	IRQTrigger IRQAction = 1 << 5

	irqActions = IRQMask | IRQUnmask | IRQTrigger
)

// IRQData is what an IRQSet carries. The values are those on the wire.
type IRQData uint32

// The kinds of data.
const (
	IRQNone    IRQData = 1 << 0 // act on all interrupts of the range
	IRQBool    IRQData = 1 << 1 // act on those that are told
	IRQEventFD IRQData = 1 << 2 // an eventfd for each

	irqDatas = IRQNone | IRQBool | IRQEventFD
)

// The payloads of GET_IRQ_INFO and SET_IRQS. Of the latter it is the fixed part.
const (
	irqInfoSize = 16 // u32 argsz, u32 flags, u32 index, u32 count
	setIRQsSize = 20 // u32 argsz, u32 flags, u32 index, u32 start, u32 count
)

// Flags of a GET_IRQ_INFO reply. QEMU looks at none of them.
const (
	irqInfoEventFD    = 1 << 0
	irqInfoMaskable   = 1 << 1
	irqInfoAutomasked = 1 << 2
	irqInfoNoResize   = 1 << 3 // the interrupts of the index are set up all at once
)

// getIRQInfo serves GET_IRQ_INFO. An index without interrupts is EINVAL: it is what QEMU takes
// silently for the error interrupt, whereas it warns about a count of 0.
func (c *conn) getIRQInfo(body []byte) (int, error) {
	argsz := binary.LittleEndian.Uint32(body[0:])
	index := binary.LittleEndian.Uint32(body[8:])
	if argsz < irqInfoSize || index >= NumIRQs || c.info.IRQs[index] == 0 {
		return 0, unix.EINVAL
	}
	flags := uint32(irqInfoEventFD | irqInfoNoResize)
	if index == IRQINTx {
		flags = irqInfoEventFD | irqInfoMaskable | irqInfoAutomasked
	}
	p := c.reserve(irqInfoSize)
	binary.LittleEndian.PutUint32(p[0:], irqInfoSize)
	binary.LittleEndian.PutUint32(p[4:], flags)
	binary.LittleEndian.PutUint32(p[8:], index)
	binary.LittleEndian.PutUint32(p[12:], c.info.IRQs[index])
	return len(p), nil
}

// setIRQs serves SET_IRQS. Its reply has no payload.
func (c *conn) setIRQs(body []byte) (int, error) {
	if len(body) < setIRQsSize {
		return 0, c.h.malformed("payload of %d bytes, want at least %d", len(body), setIRQsSize)
	}
	flags := binary.LittleEndian.Uint32(body[4:])
	set := IRQSet{
		Action: IRQAction(flags) & irqActions,
		Data:   IRQData(flags) & irqDatas,
		Index:  binary.LittleEndian.Uint32(body[8:]),
		Start:  binary.LittleEndian.Uint32(body[12:]),
		Count:  binary.LittleEndian.Uint32(body[16:]),
		Bools:  body[setIRQsSize:],
	}
	if flags != uint32(set.Action)|uint32(set.Data) || set.Index >= NumIRQs ||
		uint64(set.Start)+uint64(set.Count) > uint64(c.info.IRQs[set.Index]) {
		return 0, unix.EINVAL
	}
	switch set.Action {
	case IRQMask, IRQUnmask, IRQTrigger:
	default: // none, or several
		return 0, unix.EINVAL
	}
	if set.Count == 0 && (set.Action != IRQTrigger || set.Data != IRQNone) {
		return 0, unix.EINVAL
	}
	bools, fds := 0, 0
	switch set.Data {
	case IRQNone:
	case IRQBool:
		bools = int(set.Count)
	case IRQEventFD:
		if len(c.fds) > 0 {
			fds = int(set.Count)
		}
	default: // none, or several
		return 0, unix.EINVAL
	}
	if len(set.Bools) != bools || len(c.fds) != fds {
		return 0, unix.EINVAL
	}
	set.Files = c.takeFiles("eventfd")
	return 0, c.dev.SetIRQs(set)
}

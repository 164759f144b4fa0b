package vhostuser

import "os"

// Bits of the feature words that belong to vhost-user rather than to virtio. A connection offers
// them by itself and keeps them from the Backend.
const (
	featureLogAll   = 1 << 26 // VHOST_F_LOG_ALL: log all writes to guest memory
	featureProtocol = 1 << 30 // VHOST_USER_F_PROTOCOL_FEATURES
	featurePacked   = 1 << 34 // VIRTIO_F_RING_PACKED, which decides what a ring looks like

	// ours are the bits that the Backend is not told.
	ours = featureLogAll | featureProtocol
)

// Protocol features that a Backend may offer (specification, "Protocol features").
const (
	ProtocolMQ                = 1 << 0  // several queue pairs
	ProtocolLogSHMFD          = 1 << 1  // a log of written pages; without it QEMU does not migrate the guest
	ProtocolRARP              = 1 << 2  // [Backend.SendRARP]
	ProtocolReplyAck          = 1 << 3  // requests are acknowledged if the front end wants
	ProtocolNetMTU            = 1 << 4  // [Backend.SetMTU]
	ProtocolBackendReq        = 1 << 5  // a channel for our requests; User Mode Linux has no interrupt without
	ProtocolResetDevice       = 1 << 13 // [Backend.Reset]
	ProtocolConfigureMemSlots = 1 << 15 // memory comes and goes in single regions
	ProtocolStatus            = 1 << 16 // the device status is told and kept

	// ProtocolAll is every protocol feature that this package serves.
	ProtocolAll = ProtocolMQ | ProtocolLogSHMFD | ProtocolRARP | ProtocolReplyAck | ProtocolNetMTU |
		ProtocolBackendReq | ProtocolResetDevice | ProtocolConfigureMemSlots | ProtocolStatus
)

// Backend is a device whose rings a front end hands over. All its methods are called one at a time, in the order of a
// front end's messages, and none between Detach and the next Attach, except Features, ProtocolFeatures and
// QueuePairs.
//
// An error closes the connection and becomes the cause of Detach, unless said otherwise.
type Backend interface {
	// Features returns the virtio features offered. ProtocolFeatures returns those of ProtocolAll that
	// are offered. QueuePairs returns how many pairs of a receive and a transmit ring there are, 1 to 128.
	// They are asked once for each connection, before Attach.
	Features() uint64
	ProtocolFeatures() uint64
	QueuePairs() int

	// Attach tells that a front end has connected and spoken. peer says who, for logs. There is one at
	// a time, and it starts from nothing: no feature, no memory, no ring. After an error there is no Detach.
	//
	// hangUp ends the connection for a cause that is the Backend's, such as a malformed ring; the cause is logged
	// and comes back in Detach. It may be called at any time from any goroutine, more than
	// once, and does not wait.
	Attach(peer string, hangUp func(cause error)) error

	// Detach tells that the front end of the last Attach has gone, and why: [io.EOF] if it left,
	// [net.ErrClosed] if the server was closed, ErrTakenOver if another one follows, otherwise an error. Rings may still be running: the
	// Backend stops them, closes what files it has and gives up the memory and the log.
	Detach(cause error)

	// SetFeatures tells the virtio features acknowledged, a subset of those offered. No ring is running.
	SetFeatures(features uint64) error

	// SetMemory replaces all guest memory. No ring is running; those that were, if any, are started again
	// afterwards. Regions overlap neither in guest nor in user addresses, and do not wrap around. What is
	// in the files, and whether they are as long as the regions say, is for the Backend to find
	// out. The slice and the files are valid until the call returns.
	SetMemory(regions []MemRegion) error

	// StartVring starts a ring that is not running. Work may be waiting in it already.
	//
	// The files belong to the Backend, even if the call fails.
	StartVring(v VringConfig) error

	// StopVring stops a ring that is running and returns where: the next entry of the available ring or, for a packed
	// ring, both positions with their wrap counters as in VringConfig.Base. When it returns
	// the ring is not touched any more, and its files are closed. A ring that was found malformed is
	// stopped like any other.
	StopVring(index int) (base uint32, err error)

	// SetVringEnable enables or disables a ring that is running. A disabled receive ring gets no
	// frame; what comes from a disabled transmit ring is taken and dropped.
	SetVringEnable(index int, on bool) error

	// SetVringCall replaces the call of a ring that is running; nil means that the front end polls. The
	// file belongs to the Backend, even if the call fails. No signal may be lost meanwhile, so the Backend had better
	// signal the new one at once.
	SetVringCall(index int, call *os.File) error

	// SetVringLog replaces VringConfig.UsedLog of a ring that is running.
	SetVringLog(index int, used UsedLog) error

	// SetLog starts to log every write to guest memory, replaces the log, or stops with nil. The
	// file is valid until the call returns.
	SetLog(log *Log) error

	// SetMTU tells the MTU that the guest was told, in bytes. An error is the answer to the front end if that
	// asked for one, and does not end the connection then.
	SetMTU(mtu uint16) error

	// SendRARP asks to announce the guest's address after a migration, by a broadcast from it.
	SendRARP(mac [6]byte) error

	// Reset returns the device to its initial state: no features, no log. No ring is running. The
	// memory stays, since QEMU does not send it again.
	Reset() error
}

// MemRegion is a piece of guest memory.
type MemRegion struct {
	GPA    uint64   // guest-physical address, the one in descriptors
	Size   uint64   // bytes, at least 1
	UVA    uint64   // address in the front end's process, the one of rings in messages
	Offset uint64   // where in File the piece begins, bytes
	File   *os.File // see Backend.SetMemory
}

// VringConfig is all that is needed to process a ring.
type VringConfig struct {
	Index int    // even is a receive ring from the guest's point of view, odd a transmit ring
	Num   uint16 // size in entries, 1 to 32768, and a power of two unless the ring is packed

	// Base is where to go on. For a split ring, the next entry of the available ring, below 65536. For a packed ring, bits
	// 0-14 the next available descriptor and bit 15 its wrap counter, bits 16-30 the next used descriptor and bit
	// 31 its wrap counter. DPDK leaves the upper half 0, and means the same as in the lower.
	Base uint32

	// Guest-physical addresses of the descriptors, the available and the used ring; in a packed ring, of the
	// descriptors, the driver's and the device's event suppression structure. Each is aligned as virtio
	// demands and lies wholly in one region of the memory.
	Desc, Avail, Used uint64

	Enabled bool // see Backend.SetVringEnable

	// Kick wakes the Backend, Call the guest, and Err tells that the ring is broken. Each may be nil: without a Kick
	// the Backend has to poll. They are eventfds, but a Call may be a socket: User Mode Linux passes one end of
	// a pair. Each is blocking or not as the front end likes.
	Kick, Call, Err *os.File

	UsedLog UsedLog
}

// UsedLog says whether writes to a used ring are to be logged. They are logged at Addr onward, which
// need not lie in guest memory, nor in the log.
type UsedLog struct {
	On   bool
	Addr uint64 // where the first byte of the used ring is logged
}

// Log is a bitmap of the pages of 4096 bytes that were written (specification, "Migration"). Page n is bit n%8 of byte n/8.
// It covers the guest memory at the time it was passed. Memory that is added later may lie
// beyond, as may a UsedLog. The front end reads and clears it meanwhile.
type Log struct {
	Size   uint64 // bytes, at least 1
	Offset uint64 // where in File the log begins, bytes
	File   *os.File
}

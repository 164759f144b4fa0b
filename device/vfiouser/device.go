package vfiouser

// The regions of a PCI device. 0 to 5 are the base address registers.
const (
	RegionROM    = 6
	RegionConfig = 7
	NumRegions   = 9 // the last is VGA
)

// The interrupt indexes of a PCI device.
const (
	IRQINTx = 0
	NumIRQs = 5 // 1 MSI, 2 MSI-X, 3 error, 4 request to release the device
)

// What a client may do with a region.
const (
	RegionReadable = 1 << 0
	RegionWritable = 1 << 1
)

// Device is what a server serves. All its methods are called by one goroutine for each connection, in
// the order of the messages, and none between Detach and the next Attach, except Info.
//
// An error that is or wraps a [syscall.Errno] is sent to the client as the answer, and the connection goes
// on. Any other error closes the connection and becomes the cause of Detach. A method
// must return within a fraction of a second, since the guest's CPU waits for it.
type Device interface {
	// Info describes the device. It is asked once for each connection, before Attach.
	Info() Info

	// Attach tells that a client has connected and spoken. peer says who, for logs. There
	// is one client at a time. After an error there is no Detach.
	Attach(peer string) error

	// Detach tells that the client of the last Attach has gone, and why: [io.EOF] if it left, [net.ErrClosed]
	// if the server was closed, otherwise an error. The socket is closed already. The device gives up
	// the memory and eventfds it was passed, and resets itself.
	Detach(cause error)

	// ReadRegion fills p, which is zero, from offset off of a region. WriteRegion writes p there. The access lies
	// inside the region and the region permits it. p is valid until the call returns. The guest chooses the size, usually
	// 1, 2, 4 or 8 bytes, and the alignment.
	ReadRegion(region int, off uint64, p []byte) error
	WriteRegion(region int, off uint64, p []byte) error

	// MapDMA adds guest memory, UnmapDMA takes it away: when UnmapDMA returns, the device has
	// stopped using it. The ranges are the client's: they do not wrap around, but may overlap or
	// not exist. UnmapDMA(0, 0) means all memory. An error in place of an answer to a
	// mapping makes QEMU complain or, with a virtual IOMMU, abort: a device
	// had better leave alone memory that it cannot reach.
	MapDMA(DMARegion) error
	UnmapDMA(iova, size uint64) error

	// SetIRQs sets up, masks, unmasks or triggers interrupts.
	SetIRQs(IRQSet) error

	// Reset is the reset of the PCI function, at each reset of the machine.
	Reset() error
}

// Info describes a device.
type Info struct {
	Regions [NumRegions]RegionInfo
	IRQs    [NumIRQs]uint32 // how many interrupts each index has
}

// RegionInfo describes a region. The zero value is a region that the device does not have.
type RegionInfo struct {
	Size  uint64 // bytes; for the ROM, the device's base address register gives the same
	Flags uint32 // RegionReadable, RegionWritable
}

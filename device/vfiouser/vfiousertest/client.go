// Package vfiousertest is the client half of vfio-user, for tests: what QEMU's vfio-user-pci sends,
// without a QEMU. It shares no code with the server, so that both must agree with the protocol rather than
// with each other.
package vfiousertest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Commands.
const (
	Version          = 1
	DMAMap           = 2
	DMAUnmap         = 3
	GetInfo          = 4
	GetRegionInfo    = 5
	GetRegionIOFDs   = 6
	GetIRQInfo       = 7
	SetIRQs          = 8
	RegionRead       = 9
	RegionWrite      = 10
	DMARead          = 11
	DMAWrite         = 12
	DeviceReset      = 13
	RegionWriteMulti = 15
	DeviceFeature    = 16
)

// Header flags.
const (
	FlagReply   = 0x01
	FlagNoReply = 0x10
	FlagError   = 0x20
)

// ConfigRegion is the region of PCI configuration space; 0 to 5 are the BARs.
const ConfigRegion = 7

// Capabilities is the text of the VERSION message that QEMU 11.1 sends.
const Capabilities = `{"capabilities": {"pgsizes": 4096, "max_msg_fds": 16, "max_dma_maps": 65535, ` +
	`"max_data_xfer_size": 1048576, "migration": {"max_bitmap_size": 268435456, "pgsize": 4096}, "write_multiple": true}}`

// timeout is how long QEMU waits for a reply. A later one would be fatal to it.
const timeout = 5 * time.Second

// Header is the header of a message.
type Header struct {
	ID, Command        uint16
	Size, Flags, Errno uint32
}

// Append appends the 16 bytes of h to b.
func (h Header) Append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint16(b, h.ID)
	b = binary.LittleEndian.AppendUint16(b, h.Command)
	b = binary.LittleEndian.AppendUint32(b, h.Size)
	b = binary.LittleEndian.AppendUint32(b, h.Flags)
	return binary.LittleEndian.AppendUint32(b, h.Errno)
}

// Client is a connected client. It may be used by one goroutine at a time.
type Client struct {
	// ReplySize is the size of the largest reply seen that was longer than its request, other than
	// those of REGION_READ; QEMU would have given up on it. 0 is what it should be.
	ReplySize int

	fd      int // blocking
	id      uint16
	payload []byte // of a region access; this and what follows is reused, so that tests see only the server allocate
	buf     []byte // the message last sent or the payload last received
	head    [16]byte
	count   [8]byte
	irq     int  // the eventfd of INTx, or -1
	pending bool // INTx was signalled, and no BAR accessed since
}

// Pair returns a client and the other end of its socket, for a server to take over.
func Pair() (*Client, *net.UnixConn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	file := os.NewFile(uintptr(fds[1]), "vfio-user server")
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		unix.Close(fds[0])
		return nil, nil, err
	}
	c, err := newClient(fds[0])
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	return c, conn.(*net.UnixConn), nil
}

// Dial connects to the server that listens at path.
func Dial(path string) (*Client, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("connect", err)
	}
	return newClient(fd)
}

// newClient takes fd over.
func newClient(fd int) (*Client, error) {
	tv := unix.NsecToTimeval(timeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("setsockopt", err)
	}
	return &Client{fd: fd, irq: -1}, nil
}

// Close leaves without a word, as QEMU does when it exits.
func (c *Client) Close() error {
	c.dropIRQ()
	return unix.Close(c.fd)
}

// Send sends b as it is, with descriptors that belong to its first byte.
func (c *Client) Send(b []byte, fds ...int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	for len(b) > 0 {
		n, err := unix.SendmsgN(c.fd, b, oob, nil, unix.MSG_NOSIGNAL)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return os.NewSyscallError("sendmsg", err)
		}
		b, oob = b[n:], nil
	}
	return nil
}

// Command sends a command and returns its number.
func (c *Client) Command(command uint16, flags uint32, payload []byte, fds ...int) (id uint16, err error) {
	c.id++
	h := Header{ID: c.id, Command: command, Size: uint32(16 + len(payload)), Flags: flags}
	c.buf = append(h.Append(c.buf[:0]), payload...)
	return c.id, c.Send(c.buf, fds...)
}

// CloseWrite tells the server that nothing more comes; replies can still be read.
func (c *Client) CloseWrite() error {
	return os.NewSyscallError("shutdown", unix.Shutdown(c.fd, unix.SHUT_WR))
}

// Reply waits for one message. Its payload is valid until the next call. The error is io.EOF if the
// server closed the connection.
func (c *Client) Reply() (Header, []byte, error) {
	b := c.head[:]
	if err := c.read(b); err != nil {
		return Header{}, nil, err
	}
	h := Header{
		ID:      binary.LittleEndian.Uint16(b[0:]),
		Command: binary.LittleEndian.Uint16(b[2:]),
		Size:    binary.LittleEndian.Uint32(b[4:]),
		Flags:   binary.LittleEndian.Uint32(b[8:]),
		Errno:   binary.LittleEndian.Uint32(b[12:]),
	}
	if h.Size < 16 || h.Size > 2<<20 {
		return h, nil, fmt.Errorf("message of %d bytes", h.Size)
	}
	if n := int(h.Size) - 16; cap(c.buf) < n {
		c.buf = make([]byte, n)
	} else {
		c.buf = c.buf[:n]
	}
	return h, c.buf, c.read(c.buf)
}

// read fills p.
func (c *Client) read(p []byte) error {
	for len(p) > 0 {
		n, err := unix.Read(c.fd, p)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.ECONNRESET, err == nil && n == 0:
			return io.EOF
		case err != nil:
			return os.NewSyscallError("read", err)
		}
		p = p[n:]
	}
	return nil
}

// Call sends a command and returns the payload of its reply, valid until the next call. An error
// reply is returned as the syscall.Errno in it.
func (c *Client) Call(command uint16, payload []byte, fds ...int) ([]byte, error) {
	request := 16 + len(payload)
	id, err := c.Command(command, 0, payload, fds...)
	if err != nil {
		return nil, err
	}
	h, reply, err := c.Reply()
	if err != nil {
		return nil, err
	}
	if h.ID != id || h.Command != command || h.Flags&^FlagError != FlagReply {
		return nil, fmt.Errorf("got message %+v in reply to command %d, number %d", h, command, id)
	}
	if command != RegionRead && int(h.Size) > request {
		c.ReplySize = max(c.ReplySize, int(h.Size))
	}
	if h.Flags&FlagError != 0 {
		return nil, syscall.Errno(h.Errno)
	}
	return reply, nil
}

// Payload puts values of fixed size one after the other, little-endian: the payload of a message.
func Payload(values ...any) []byte {
	var b []byte
	for _, v := range values {
		b, _ = binary.Append(b, binary.LittleEndian, v) // fails only for types of no fixed size
	}
	return b
}

// Handshake sends VERSION, then asks for the device and its regions as QEMU does.
func (c *Client) Handshake() error {
	if _, err := c.Call(Version, append(Payload(uint16(0), uint16(0)), Capabilities+"\x00"...)); err != nil {
		return fmt.Errorf("VERSION: %w", err)
	}
	info, err := c.Call(GetInfo, Payload(uint32(16), uint32(0), uint32(0), uint32(0)))
	if err != nil {
		return fmt.Errorf("GET_INFO: %w", err)
	}
	if flags := binary.LittleEndian.Uint32(info[4:]); flags&2 == 0 {
		return fmt.Errorf("GET_INFO: flags %#x, not a PCI device", flags)
	}
	for _, region := range []int{0, 1, 2, 3, 4, 5, ConfigRegion} {
		if _, _, err := c.RegionInfo(region); err != nil {
			return fmt.Errorf("GET_REGION_INFO %d: %w", region, err)
		}
	}
	if _, err := c.Call(GetIRQInfo, Payload(uint32(16), uint32(0), uint32(3), uint32(0))); !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("GET_IRQ_INFO of the error interrupt: %v, want EINVAL", err)
	}
	return nil
}

// RegionInfo asks for the size of a region, and what may be done with it.
func (c *Client) RegionInfo(region int) (size uint64, flags uint32, err error) {
	b, err := c.Call(GetRegionInfo, Payload(uint32(32), uint32(0), uint32(region), uint32(0), uint64(0), uint64(0)))
	if err != nil {
		return 0, 0, err
	}
	if len(b) != 32 {
		return 0, 0, fmt.Errorf("payload of %d bytes, want 32", len(b))
	}
	return binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint32(b[4:]), nil
}

// MapDMA offers size bytes of file from offset on as guest memory at iova, for reading and writing. A nil
// file offers memory that is not shared, read only.
func (c *Client) MapDMA(iova, size uint64, file *os.File, offset uint64) error {
	if file == nil {
		_, err := c.Call(DMAMap, Payload(uint32(32), uint32(1), offset, iova, size))
		return err
	}
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var callErr error
	if err := conn.Control(func(fd uintptr) {
		_, callErr = c.Call(DMAMap, Payload(uint32(32), uint32(3), offset, iova, size), int(fd))
	}); err != nil {
		return err
	}
	return callErr
}

// UnmapDMA takes memory away that was offered with the same numbers.
func (c *Client) UnmapDMA(iova, size uint64) error {
	_, err := c.Call(DMAUnmap, Payload(uint32(24), uint32(0), iova, size))
	return err
}

// appendAccess appends the head of a region access to b.
func appendAccess(b []byte, region int, off uint64, count int) []byte {
	b = binary.LittleEndian.AppendUint64(b, off)
	b = binary.LittleEndian.AppendUint32(b, uint32(region))
	return binary.LittleEndian.AppendUint32(b, uint32(count))
}

// RegionRead reads len(p) bytes at offset off of a region. Like QEMU it unmasks INTx after
// an access to a BAR, if it was signalled.
func (c *Client) RegionRead(region int, off uint64, p []byte) error {
	c.payload = appendAccess(c.payload[:0], region, off, len(p))
	b, err := c.Call(RegionRead, c.payload)
	if err != nil {
		return err
	}
	if len(b) != 16+len(p) {
		return fmt.Errorf("read of %d bytes brought %d", len(p), len(b)-16)
	}
	copy(p, b[16:])
	return c.endOfAccess(region)
}

// RegionWrite writes p at offset off of a region and waits for the reply, as a write to an I/O
// BAR or to configuration space does.
func (c *Client) RegionWrite(region int, off uint64, p []byte) error {
	c.payload = append(appendAccess(c.payload[:0], region, off, len(p)), p...)
	if _, err := c.Call(RegionWrite, c.payload); err != nil {
		return err
	}
	return c.endOfAccess(region)
}

// RegionPost writes p at offset off of a region without waiting, as a write to a memory BAR does.
func (c *Client) RegionPost(region int, off uint64, p []byte) error {
	c.payload = append(appendAccess(c.payload[:0], region, off, len(p)), p...)
	if _, err := c.Command(RegionWrite, FlagNoReply, c.payload); err != nil {
		return err
	}
	return c.endOfAccess(region)
}

// endOfAccess ends the interrupt that was raised before an access to a BAR.
func (c *Client) endOfAccess(region int) error {
	if region > 5 || !c.IRQPending() {
		return nil
	}
	c.pending = false
	_, err := c.Call(SetIRQs, Payload(uint32(20), uint32(0x11), uint32(0), uint32(0), uint32(1)))
	return err
}

// SetINTx gives the device an eventfd for INTx, in place of the one before.
func (c *Client) SetINTx() error {
	c.dropIRQ()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	c.irq = fd
	_, err = c.Call(SetIRQs, Payload(uint32(20), uint32(0x24), uint32(0), uint32(0), uint32(1)), fd)
	return err
}

// ClearINTx takes the eventfd away, as QEMU does first in a reset of the machine.
func (c *Client) ClearINTx() error {
	c.dropIRQ()
	_, err := c.Call(SetIRQs, Payload(uint32(20), uint32(0x21), uint32(0), uint32(0), uint32(0)))
	return err
}

func (c *Client) dropIRQ() {
	if c.irq >= 0 {
		unix.Close(c.irq)
	}
	c.irq, c.pending = -1, false
}

// IRQPending reports whether the guest's interrupt line is raised: the device has signalled INTx, and
// no BAR was accessed since.
func (c *Client) IRQPending() bool {
	if c.irq >= 0 {
		if n, _ := unix.Read(c.irq, c.count[:]); n == len(c.count) {
			c.pending = true
		}
	}
	return c.pending
}

// WaitIRQ waits until IRQPending, or until ctx is done.
func (c *Client) WaitIRQ(ctx context.Context) error {
	for !c.IRQPending() {
		if err := ctx.Err(); err != nil {
			return err
		}
		fds := []unix.PollFd{{Fd: int32(c.irq), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, 10); err != nil && err != unix.EINTR {
			return os.NewSyscallError("poll", err)
		}
	}
	return nil
}

// Reset does what QEMU does when the machine is reset: it takes INTx away, resets the device, and sets
// INTx up again.
func (c *Client) Reset() error {
	if err := c.ClearINTx(); err != nil {
		return err
	}
	if _, err := c.Call(DeviceReset, nil); err != nil {
		return err
	}
	return c.SetINTx()
}

// Memfd returns a file in memory of size bytes, to offer as guest memory.
func Memfd(size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "guest")
	if err := f.Truncate(size); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

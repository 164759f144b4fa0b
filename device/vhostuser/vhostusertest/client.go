// Package vhostusertest is the front end's half of vhost-user, for tests: what QEMU, DPDK's virtio-user and User Mode
// Linux send, without any of them. It shares no code with the back end, so that both must
// agree with the protocol rather than with each other.
//
// A [Client] speaks. A [Memory] is the guest's, to be offered and to be looked into: it has what a
// queue needs of memory, so a test can be the guest's driver in it. A [Vring] is the place
// of a ring in it, with its doorbells.
package vhostusertest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Requests.
const (
	GetFeatures         = 1
	SetFeatures         = 2
	SetOwner            = 3
	ResetOwner          = 4
	SetMemTable         = 5
	SetLogBase          = 6
	SetLogFD            = 7
	SetVringNum         = 8
	SetVringAddr        = 9
	SetVringBase        = 10
	GetVringBase        = 11
	SetVringKick        = 12
	SetVringCall        = 13
	SetVringErr         = 14
	GetProtocolFeatures = 15
	SetProtocolFeatures = 16
	GetQueueNum         = 17
	SetVringEnable      = 18
	SendRARP            = 19
	NetSetMTU           = 20
	SetBackendReqFD     = 21
	IOTLBMsg            = 22
	GetConfig           = 24
	GetInflightFD       = 31
	SetInflightFD       = 32
	ResetDevice         = 34
	GetMaxMemSlots      = 36
	AddMemReg           = 37
	RemMemReg           = 38
	SetStatus           = 39
	GetStatus           = 40
)

// Header flags.
const (
	FlagVersion   = 0x1
	FlagReply     = 0x4
	FlagNeedReply = 0x8
)

// Feature bits.
const (
	FeatureLogAll   = 1 << 26
	FeatureProtocol = 1 << 30
	FeatureVersion1 = 1 << 32
	FeaturePacked   = 1 << 34
)

// NoFD in the payload of SET_VRING_KICK, _CALL and _ERR says that there is no descriptor.
const NoFD = 1 << 8

// timeout bounds the wait for a reply.
const timeout = 10 * time.Second

// ErrRefused reports that the back end answered a request with a number other than 0.
var ErrRefused = errors.New("the back end refused")

// Header is the header of a message.
type Header struct {
	Request, Flags uint32
	Size           uint32 // bytes of payload
}

// Append appends the 12 bytes of h to b.
func (h Header) Append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, h.Request)
	b = binary.LittleEndian.AppendUint32(b, h.Flags)
	return binary.LittleEndian.AppendUint32(b, h.Size)
}

// Message puts a message together.
func Message(request, flags uint32, payload []byte) []byte {
	return append(Header{request, flags, uint32(len(payload))}.Append(nil), payload...)
}

// Payload puts values of fixed size one after the other, little-endian: the payload of a message.
func Payload(values ...any) []byte {
	var b []byte
	for _, v := range values {
		var err error
		if b, err = binary.Append(b, binary.LittleEndian, v); err != nil {
			panic(err) // a type of no fixed size
		}
	}
	return b
}

// Client is a connected front end. It may be used by one goroutine at a time.
type Client struct {
	// Features and ProtocolFeatures are those the back end offers, once Connect has asked.
	Features, ProtocolFeatures uint64

	conn *net.UnixConn
}

// Pair returns a client and the other end of its socket, for a back end to take over.
func Pair() (*Client, *net.UnixConn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "vhost-user")
		c, cerr := net.FileConn(f)
		f.Close()
		conns[i], err = c, errors.Join(err, cerr)
	}
	if err != nil {
		return nil, nil, err
	}
	return NewClient(conns[0].(*net.UnixConn)), conns[1].(*net.UnixConn), nil
}

// Dial connects to the back end that listens at path.
func Dial(path string) (*Client, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	return NewClient(conn), nil
}

// NewClient returns a client for a connection, for instance one that a back end made to us. It takes conn over.
func NewClient(conn *net.UnixConn) *Client { return &Client{conn: conn} }

// Close leaves without a word.
func (c *Client) Close() error { return c.conn.Close() }

// CloseWrite tells the back end that nothing more comes; replies can still be read.
func (c *Client) CloseWrite() error { return c.conn.CloseWrite() }

// Send sends b as it is, with descriptors that belong to its first byte.
func (c *Client) Send(b []byte, fds ...int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	n, _, err := c.conn.WriteMsgUnix(b, oob, nil)
	if err == nil && n < len(b) {
		_, err = c.conn.Write(b[n:])
	}
	return err
}

// Request sends a request without waiting for anything.
func (c *Client) Request(request, flags uint32, payload []byte, fds ...int) error {
	return c.Send(Message(request, FlagVersion|flags, payload), fds...)
}

// Reply waits for one message. The error is io.EOF if the back end closed the connection.
func (c *Client) Reply() (Header, []byte, error) {
	c.conn.SetReadDeadline(time.Now().Add(timeout)) // fails only if closed: then Read does
	b := make([]byte, 12)
	if _, err := io.ReadFull(c.conn, b); err != nil {
		if errors.Is(err, unix.ECONNRESET) {
			err = io.EOF
		}
		return Header{}, nil, err
	}
	h := Header{binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:]), binary.LittleEndian.Uint32(b[8:])}
	if h.Size > 4096 {
		return h, nil, fmt.Errorf("message with a payload of %d bytes", h.Size)
	}
	payload := make([]byte, h.Size)
	_, err := io.ReadFull(c.conn, payload)
	return h, payload, err
}

// Get sends a request that has a reply, and returns the payload of that.
func (c *Client) Get(request uint32, payload []byte, fds ...int) ([]byte, error) {
	return c.exchange(request, 0, payload, fds)
}

// GetU64 is Get for a reply that is one number.
func (c *Client) GetU64(request uint32) (uint64, error) {
	b, err := c.Get(request, nil)
	if err != nil {
		return 0, err
	}
	if len(b) != 8 {
		return 0, fmt.Errorf("reply to request %d has %d bytes, want 8", request, len(b))
	}
	return binary.LittleEndian.Uint64(b), nil
}

// Set sends a request that has no reply, asks for one, and waits for it: ErrRefused if it is not 0.
func (c *Client) Set(request uint32, payload []byte, fds ...int) error {
	b, err := c.exchange(request, FlagNeedReply, payload, fds)
	switch {
	case err != nil:
		return err
	case len(b) != 8:
		return fmt.Errorf("acknowledgement of request %d has %d bytes, want 8", request, len(b))
	case binary.LittleEndian.Uint64(b) != 0:
		return fmt.Errorf("request %d: %w", request, ErrRefused)
	}
	return nil
}

// exchange sends a request and returns the payload of its reply.
func (c *Client) exchange(request, flags uint32, payload []byte, fds []int) ([]byte, error) {
	if err := c.Request(request, flags, payload, fds...); err != nil {
		return nil, err
	}
	h, reply, err := c.Reply()
	if err != nil {
		return nil, err
	}
	if h.Request != request || h.Flags != FlagVersion|FlagReply {
		return nil, fmt.Errorf("got %+v in reply to request %d", h, request)
	}
	return reply, nil
}

// Connect begins a session as QEMU does: it asks for features, acknowledges those of the given protocol
// features that are offered, and becomes the owner.
func (c *Client) Connect(protocol uint64) (err error) {
	if c.Features, err = c.GetU64(GetFeatures); err != nil {
		return err
	}
	if c.ProtocolFeatures, err = c.GetU64(GetProtocolFeatures); err != nil {
		return err
	}
	if err := c.Request(SetProtocolFeatures, 0, Payload(c.ProtocolFeatures&protocol)); err != nil {
		return err
	}
	return c.Request(SetOwner, 0, nil)
}

// SetFeatures acknowledges features.
func (c *Client) SetFeatures(features uint64) error { return c.Set(SetFeatures, Payload(features)) }

// SetMemTable makes these the guest's memory.
func (c *Client) SetMemTable(mem ...*Memory) error {
	payload := Payload(uint32(len(mem)), uint32(0))
	var fds []int
	for _, m := range mem {
		payload = append(payload, m.Region()...)
		fds = append(fds, m.FD())
	}
	return c.Set(SetMemTable, payload, fds...)
}

// AddMemReg adds m to the guest's memory, RemMemReg takes it away.
func (c *Client) AddMemReg(m *Memory) error {
	return c.Set(AddMemReg, append(Payload(uint64(0)), m.Region()...), m.FD())
}

func (c *Client) RemMemReg(m *Memory) error {
	return c.Set(RemMemReg, append(Payload(uint64(0)), m.Region()...))
}

// StartVring hands a ring over, as QEMU does.
func (c *Client) StartVring(v *Vring) error {
	for _, step := range []func() error{
		func() error { return c.Set(SetVringNum, Payload(uint32(v.Index), uint32(v.Num))) },
		func() error { return c.Set(SetVringBase, Payload(uint32(v.Index), v.Base)) },
		func() error { return c.Set(SetVringAddr, v.Addr(0, 0)) },
		func() error { return c.Set(SetVringKick, Payload(uint64(v.Index)), v.KickFD) },
		func() error { return c.Set(SetVringCall, Payload(uint64(v.Index)), v.CallFD) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// EnableVring enables or disables a ring.
func (c *Client) EnableVring(index int, on bool) error {
	n := uint32(0)
	if on {
		n = 1
	}
	return c.Set(SetVringEnable, Payload(uint32(index), n))
}

// StopVring takes a ring back, and sets v.Base to where it stopped.
func (c *Client) StopVring(v *Vring) error {
	b, err := c.Get(GetVringBase, Payload(uint32(v.Index), uint32(0)))
	if err != nil {
		return err
	}
	if len(b) != 8 || binary.LittleEndian.Uint32(b) != uint32(v.Index) {
		return fmt.Errorf("GET_VRING_BASE of ring %d answered with % x", v.Index, b)
	}
	v.Base = binary.LittleEndian.Uint32(b[4:])
	return nil
}

// uvaOffset is how far a front end's address of guest memory is from the guest's, so that nobody confuses them.
const uvaOffset = 0x7f00_0000_0000

// Memory is a piece of guest memory, in a file that has nothing else.
type Memory struct {
	GPA, UVA uint64
	Bytes    []byte // shared with the back end

	file *os.File
}

// NewMemory makes size bytes of guest memory, a multiple of the page size, at gpa.
func NewMemory(gpa uint64, size int) (*Memory, error) {
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	m := &Memory{GPA: gpa, UVA: gpa + uvaOffset, file: os.NewFile(uintptr(fd), "guest")}
	if err := m.file.Truncate(int64(size)); err != nil {
		m.file.Close()
		return nil, err
	}
	if m.Bytes, err = unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		m.file.Close()
		return nil, os.NewSyscallError("mmap", err)
	}
	return m, nil
}

// Close unmaps the memory; the back end may still have it.
func (m *Memory) Close() error {
	return errors.Join(unix.Munmap(m.Bytes), m.file.Close())
}

// File returns the file that holds the memory; it is closed with m.
func (m *Memory) File() *os.File { return m.file }

// FD returns the descriptor of the file, to send it.
func (m *Memory) FD() int { return int(m.file.Fd()) }

// Region returns m as the protocol describes a region.
func (m *Memory) Region() []byte { return Payload(m.GPA, uint64(len(m.Bytes)), m.UVA, uint64(0)) }

// Window returns the n bytes at gpa themselves, or nil if there are not so many.
func (m *Memory) Window(gpa uint64, n int, _ bool) []byte {
	off := gpa - m.GPA
	if gpa < m.GPA || n <= 0 || off >= uint64(len(m.Bytes)) || uint64(n) > uint64(len(m.Bytes))-off {
		return nil
	}
	return m.Bytes[off : off+uint64(n) : off+uint64(n)]
}

// Vring is where a ring lies in guest memory, with its doorbells.
type Vring struct {
	Index, Num int
	Base       uint32 // where the back end begins

	Desc, Avail, Used uint64 // guest-physical
	Mem               *Memory

	KickFD, CallFD int // eventfds that do not block
}

// NewVring lays a ring of num entries out at a guest-physical address, and returns the first address after it. The layout suits a
// split ring; a packed one needs less of each part.
func NewVring(m *Memory, index, num int, at uint64) (v *Vring, end uint64, err error) {
	v = &Vring{Index: index, Num: num, Mem: m, KickFD: -1, CallFD: -1}
	v.Desc = (at + 63) &^ 63
	v.Avail = (v.Desc + 16*uint64(num) + 63) &^ 63
	v.Used = (v.Avail + 6 + 2*uint64(num) + 63) &^ 63
	end = v.Used + 6 + 8*uint64(num)
	for _, fd := range []*int{&v.KickFD, &v.CallFD} {
		if *fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
			v.Close()
			return nil, 0, os.NewSyscallError("eventfd", err)
		}
	}
	return v, end, nil
}

// Close closes the doorbells.
func (v *Vring) Close() {
	for _, fd := range []*int{&v.KickFD, &v.CallFD} {
		if *fd >= 0 {
			unix.Close(*fd)
		}
		*fd = -1
	}
}

// Addr returns the payload of SET_VRING_ADDR: flags 1 means that the used ring is logged from log on.
func (v *Vring) Addr(flags uint32, log uint64) []byte {
	uva := v.Mem.UVA - v.Mem.GPA
	return Payload(uint32(v.Index), flags, v.Desc+uva, v.Used+uva, v.Avail+uva, log)
}

// Kick tells the back end that there is work.
func (v *Vring) Kick() error {
	_, err := unix.Write(v.KickFD, binary.NativeEndian.AppendUint64(nil, 1))
	return os.NewSyscallError("write", err)
}

// Called reports whether the back end has signalled since the last time.
func (v *Vring) Called() bool {
	var count [8]byte
	n, _ := unix.Read(v.CallFD, count[:])
	return n == len(count)
}

// WaitCall waits until Called, or until ctx is done.
func (v *Vring) WaitCall(ctx context.Context) error {
	for !v.Called() {
		if err := ctx.Err(); err != nil {
			return err
		}
		fds := []unix.PollFd{{Fd: int32(v.CallFD), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, 10); err != nil && err != unix.EINTR {
			return os.NewSyscallError("poll", err)
		}
	}
	return nil
}

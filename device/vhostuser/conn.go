package vhostuser

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a front end that connected to us may take to send its first message, which all do at
// once: a port must not stay occupied by something that only connected.
const patience = 5 * time.Second

// conn is one connection.
type conn struct {
	conn    *net.UnixConn
	dev     Backend
	custody *custody // of dev, which may be another connection's
	log     *slog.Logger

	ctx    context.Context // done when the connection is to end
	hangUp func(error)     // ends it
	peer   string          // who it is; "" until it has spoken

	// What we offer, the bits of vhost-user included.
	offered, protocolOffered uint64
	// What the front end acknowledged.
	features, protocol uint64
	featured           bool // dev was told features since it was attached or reset

	status  uint8       // as the front end set it
	mem     []MemRegion // owns the files
	rings   []vring
	logBase Log  // owns the file, which is nil if there is none
	logging bool // dev was told logBase; only while the device is ours
	channel int  // for our requests, or -1: only held, see setBackendReqFD

	// The message under way.
	h   header
	in  []byte // its payload
	fds []int  // its descriptors that nobody has taken yet
}

// ServeConn serves one connected front end until it leaves, ctx is done, or an error, which it
// logs and returns; nil if the front end left. It takes uc over. name says in the log which port it is.
//
// It is for a front end that came through neither a Server nor a Client, such as one end of a socket pair.
func ServeConn(ctx context.Context, uc *net.UnixConn, dev Backend, log *slog.Logger, name string) error {
	if err := newConn(uc, dev, newCustody(0), log.With("port", name)).run(ctx, patience); err != io.EOF {
		return err
	}
	return nil
}

// newConn takes uc over. d is the custody of dev.
func newConn(uc *net.UnixConn, dev Backend, d *custody, log *slog.Logger) *conn {
	c := &conn{conn: uc, dev: dev, custody: d, log: log, channel: -1}
	c.protocolOffered = dev.ProtocolFeatures() & ProtocolAll
	c.offered = dev.Features() | featureProtocol
	if c.protocolOffered&ProtocolLogSHMFD != 0 {
		c.offered |= featureLogAll
	}
	c.rings = make([]vring, min(2*max(dev.QueuePairs(), 1), maxVrings))
	for i := range c.rings {
		c.rings[i] = vring{kick: -1, call: -1, err: -1}
	}
	return c
}

// run serves the connection to its end and returns the cause of that, which is never nil. The first message
// must come within patience, if that is not 0.
func (c *conn) run(parent context.Context, patience time.Duration) error {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	c.ctx, c.hangUp = ctx, cancel
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		c.conn.Close() // ends a read or write under way
		close(closed)
	})
	cause := c.serve(patience)
	if !stop() {
		<-closed
		if cause = context.Cause(ctx); cause == context.Cause(parent) || cause == context.Canceled {
			cause = net.ErrClosed
		}
	}
	c.conn.Close()
	switch {
	case cause == io.EOF && c.peer == "": // a probe whether somebody listens
		c.log.Debug("vhost-user: a front end came and went")
	case cause == io.EOF:
		c.log.Info("vhost-user: front end left")
	case cause == net.ErrClosed:
		c.log.Info("vhost-user: closed")
	default:
		c.log.Warn("vhost-user: connection given up", "err", cause)
	}
	c.leave(cause)
	c.release()
	return cause
}

// release closes all that the connection holds.
func (c *conn) release() {
	closeRegions(c.mem)
	if c.logBase.File != nil {
		c.logBase.File.Close()
	}
	for i := range c.rings {
		v := &c.rings[i]
		replace(&v.kick, -1)
		replace(&v.call, -1)
		replace(&v.err, -1)
	}
	replace(&c.channel, -1)
}

// replace closes the descriptor in *p, if there is one, and puts fd in its place.
func replace(p *int, fd int) {
	if *p >= 0 {
		unix.Close(*p)
	}
	*p = fd
}

// serve answers messages until something ends the connection.
func (c *conn) serve(patience time.Duration) error {
	if patience > 0 {
		if err := c.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
	}
	for {
		err := c.receive()
		if err == nil && c.peer == "" {
			err = c.greet()
		}
		if err == nil {
			err = c.answer()
		}
		if err != nil {
			c.drop()
			return err
		}
	}
}

// drop closes the descriptors of the message under way that nobody has taken.
func (c *conn) drop() {
	for _, fd := range c.fds {
		unix.Close(fd)
	}
	c.fds = c.fds[:0]
}

// greet notes who has spoken.
func (c *conn) greet() error {
	if err := c.conn.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	c.peer = peer(c.conn)
	if err := c.enter(); err != nil {
		return fmt.Errorf("attach %s: %w", c.peer, err)
	}
	return nil
}

// peer tells who is at the other end.
func peer(conn *net.UnixConn) string {
	raw, err := conn.SyscallConn()
	if err != nil {
		return "unknown"
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil || err != nil {
		return "unknown"
	}
	return fmt.Sprintf("process %d of user %d", cred.Pid, cred.Uid)
}

// receive reads one message into c.h, c.in and c.fds. It returns io.EOF if the front end has left
// between two messages.
//
// The kernel glues messages together, but hands out descriptors with the byte they were sent with. Reading exactly
// a header first is what makes them belong to the right message. Descriptors sent with any
// later byte are not asked for, and the kernel closes them.
func (c *conn) receive() error {
	var head [headerSize]byte
	oob := make([]byte, unix.CmsgSpace(4*maxFDs))
	n, oobn, flags, _, err := c.conn.ReadMsgUnix(head[:], oob)
	if err := readError(err); err != nil {
		return err
	}
	if err := c.collect(oob[:oobn]); err != nil {
		return err
	}
	if err := c.readFull(head[n:]); err != nil {
		return fmt.Errorf("%w: %w in a header", ErrProtocol, err)
	}
	c.h = decodeHeader(head[:])
	if err := c.h.check(); err != nil {
		return err
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return c.h.malformed("more than %d descriptors, or no room for them", maxFDs)
	}
	c.in = make([]byte, c.h.size)
	if err := c.readFull(c.in); err != nil {
		return c.h.malformed("%v in a payload of %d bytes", err, c.h.size)
	}
	return nil
}

// readFull fills p, and drops descriptors sent with it.
func (c *conn) readFull(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	_, err := io.ReadFull(c.conn, p)
	if err = readError(err); err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// readError tells what the outcome of a read means.
func readError(err error) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET): // reset: it left without reading all replies
		return io.EOF
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%w: no message in time", ErrProtocol)
	}
	return err
}

// collect appends the descriptors in a control message to c.fds.
func (c *conn) collect(oob []byte) error {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return err
	}
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			return err
		}
		c.fds = append(c.fds, fds...)
	}
	return nil
}

// take hands out the one descriptor of the message under way, or -1 if it has none.
func (c *conn) take() int {
	if len(c.fds) == 0 {
		return -1
	}
	fd := c.fds[0]
	c.fds = c.fds[:0]
	return fd
}

// refusal is an error that the front end is told of, if it asked, and that does not end the connection then.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

// answer acts on the message under way and replies, if that is due. A message that asks for a reply gets
// one, whether or not REPLY_ACK was negotiated: User Mode Linux already asks for one of
// SET_PROTOCOL_FEATURES, which negotiates it.
func (c *conn) answer() error {
	reply, err := c.act()
	c.drop()
	ack := c.h.flags&flagNeedReply != 0
	if no := (refusal{}); errors.As(err, &no) && ack {
		level := slog.LevelWarn
		if errors.Is(err, ErrProtocol) { // we do not serve it, as front ends may find out by asking
			level = slog.LevelDebug
		}
		c.log.Log(c.ctx, level, "vhost-user: request refused", "request", c.h.req, "err", no.error)
		reply, err = u64(1), nil
	}
	switch {
	case errors.Is(err, ErrProtocol): // says of which message
		return err
	case err != nil:
		return fmt.Errorf("%v: %w", c.h.req, err)
	case reply == nil && ack:
		reply = u64(0)
	case reply == nil:
		return nil
	}
	h := header{req: c.h.req, flags: flagVersion | flagReply, size: uint32(len(reply))}
	_, err = c.conn.Write(append(h.append(nil), reply...))
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return io.EOF
	}
	return err
}

// handler says what a request looks like and what serves it.
type handler struct {
	name  string
	size  int    // bytes of payload, -1 if that varies
	fds   int    // descriptors at most; the request is malformed if it has more
	needs uint64 // protocol features, without which we do not know the request
	serve func(c *conn, body []byte) (reply []byte, err error)
}

// handlers is filled in by init, as its functions name requests by way of it.
var handlers map[request]handler

func init() {
	handlers = map[request]handler{
		reqGetFeatures:         {"GET_FEATURES", 0, 0, 0, (*conn).getFeatures},
		reqSetFeatures:         {"SET_FEATURES", u64Size, 0, 0, (*conn).setFeatures},
		reqSetOwner:            {"SET_OWNER", 0, 0, 0, (*conn).setOwner},
		reqResetOwner:          {"RESET_OWNER", 0, 0, 0, (*conn).resetOwner},
		reqSetMemTable:         {"SET_MEM_TABLE", -1, maxTable, 0, (*conn).setMemTable},
		reqSetLogBase:          {"SET_LOG_BASE", logSize, 1, ProtocolLogSHMFD, (*conn).setLogBase},
		reqSetLogFD:            {"SET_LOG_FD", -1, 1, 0, (*conn).setLogFD},
		reqSetVringNum:         {"SET_VRING_NUM", stateSize, 0, 0, (*conn).setVringNum},
		reqSetVringAddr:        {"SET_VRING_ADDR", addrSize, 0, 0, (*conn).setVringAddr},
		reqSetVringBase:        {"SET_VRING_BASE", stateSize, 0, 0, (*conn).setVringBase},
		reqGetVringBase:        {"GET_VRING_BASE", stateSize, 0, 0, (*conn).getVringBase},
		reqSetVringKick:        {"SET_VRING_KICK", u64Size, 1, 0, (*conn).setVringKick},
		reqSetVringCall:        {"SET_VRING_CALL", u64Size, 1, 0, (*conn).setVringCall},
		reqSetVringErr:         {"SET_VRING_ERR", u64Size, 1, 0, (*conn).setVringErr},
		reqGetProtocolFeatures: {"GET_PROTOCOL_FEATURES", 0, 0, 0, (*conn).getProtocolFeatures},
		reqSetProtocolFeatures: {"SET_PROTOCOL_FEATURES", u64Size, 0, 0, (*conn).setProtocolFeatures},
		reqGetQueueNum:         {"GET_QUEUE_NUM", 0, 0, ProtocolMQ, (*conn).getQueueNum},
		reqSetVringEnable:      {"SET_VRING_ENABLE", stateSize, 0, 0, (*conn).setVringEnable},
		reqSendRARP:            {"SEND_RARP", u64Size, 0, ProtocolRARP, (*conn).sendRARP},
		reqNetSetMTU:           {"NET_SET_MTU", u64Size, 0, ProtocolNetMTU, (*conn).netSetMTU},
		reqSetBackendReqFD:     {"SET_BACKEND_REQ_FD", 0, 1, ProtocolBackendReq, (*conn).setBackendReqFD},
		reqResetDevice:         {"RESET_DEVICE", 0, 0, ProtocolResetDevice, (*conn).resetDevice},
		reqGetMaxMemSlots:      {"GET_MAX_MEM_SLOTS", 0, 0, ProtocolConfigureMemSlots, (*conn).getMaxMemSlots},
		reqAddMemReg:           {"ADD_MEM_REG", memRegSize, 1, ProtocolConfigureMemSlots, (*conn).addMemReg},
		reqRemMemReg:           {"REM_MEM_REG", memRegSize, 1, ProtocolConfigureMemSlots, (*conn).remMemReg},
		reqSetStatus:           {"SET_STATUS", u64Size, 0, ProtocolStatus, (*conn).setStatus},
		reqGetStatus:           {"GET_STATUS", 0, 0, ProtocolStatus, (*conn).getStatus},
	}
}

// dispatch acts on the message under way. A reply of nil means that it has none of its own.
func (c *conn) dispatch() ([]byte, error) {
	h, ok := handlers[c.h.req]
	switch {
	case !ok:
		return nil, refusal{c.h.malformed("unknown")}
	case h.needs&^c.protocol != 0:
		return nil, refusal{c.h.malformed("protocol feature %#x was not negotiated", h.needs)}
	case h.size >= 0 && len(c.in) != h.size:
		return nil, c.h.malformed("payload of %d bytes, want %d", len(c.in), h.size)
	case len(c.fds) > h.fds:
		return nil, c.h.malformed("%d descriptors, want at most %d", len(c.fds), h.fds)
	}
	return h.serve(c, c.in)
}

// u64 returns a payload of one number.
func u64(n uint64) []byte { return binary.LittleEndian.AppendUint64(nil, n) }

func (c *conn) getFeatures([]byte) ([]byte, error) { return u64(c.offered), nil }

func (c *conn) getProtocolFeatures([]byte) ([]byte, error) { return u64(c.protocolOffered), nil }

// setProtocolFeatures serves SET_PROTOCOL_FEATURES. QEMU sends it once for each queue pair.
func (c *conn) setProtocolFeatures(body []byte) ([]byte, error) {
	f := binary.LittleEndian.Uint64(body)
	if extra := f &^ c.protocolOffered; extra != 0 {
		return nil, c.h.malformed("%#x has bits %#x that were not offered", f, extra)
	}
	c.protocol = f
	return nil, nil
}

// setFeatures serves SET_FEATURES. QEMU sends it again to start and to stop logging. User Mode Linux may send it
// again without the bit for protocol features, and then never enables a ring: they are all enabled.
func (c *conn) setFeatures(body []byte) ([]byte, error) {
	f := binary.LittleEndian.Uint64(body)
	if extra := f &^ c.offered; extra != 0 {
		return nil, c.h.malformed("%#x has bits %#x that were not offered", f, extra)
	}
	if !c.featured || (f^c.features)&^ours != 0 {
		for i := range c.rings {
			if err := c.unsettle(i); err != nil {
				return nil, err
			}
		}
		c.featured = true
		if c.holds() {
			if err := c.dev.SetFeatures(f &^ ours); err != nil {
				return nil, err
			}
		}
	}
	wasOn := make([]bool, len(c.rings))
	for i := range c.rings {
		wasOn[i] = c.on(i)
	}
	c.features = f
	for i := range c.rings {
		if err := c.tellEnabled(i, wasOn[i]); err != nil {
			return nil, err
		}
	}
	return nil, c.tellLog(false)
}

// setOwner serves SET_OWNER, the start of a session. QEMU says so much before it, and a connection is the session.
func (c *conn) setOwner([]byte) ([]byte, error) { return nil, nil }

// resetOwner serves RESET_OWNER, which is no longer used. Of what the specification recommends, disabling all rings suits
// old DPDK, whose driver stops the device with it.
func (c *conn) resetOwner([]byte) ([]byte, error) {
	err := c.haltAll()
	for i := range c.rings {
		c.rings[i].enabled = false
	}
	return nil, err
}

// resetDevice serves RESET_DEVICE. The memory and the call and error descriptors survive it: QEMU 11.1 sends it at each
// reset of the guest's driver, and afterwards only what has changed of the memory, and no error descriptor.
func (c *conn) resetDevice([]byte) ([]byte, error) {
	if err := c.haltAll(); err != nil {
		return nil, err
	}
	for i := range c.rings {
		v := &c.rings[i]
		*v = vring{kick: -1, call: v.call, err: v.err}
	}
	if c.logBase.File != nil {
		c.logBase.File.Close()
	}
	c.logBase, c.logging = Log{}, false
	c.features, c.featured, c.status = 0, false, 0
	if !c.holds() {
		return nil, nil
	}
	return nil, c.dev.Reset()
}

// getQueueNum serves GET_QUEUE_NUM. For a network device QEMU compares it with the number of pairs.
func (c *conn) getQueueNum([]byte) ([]byte, error) { return u64(uint64(len(c.rings) / 2)), nil }

// sendRARP serves SEND_RARP: a MAC address in the first 6 of 8 bytes. While another front end has the device, the guest has
// not gone anywhere.
func (c *conn) sendRARP(body []byte) ([]byte, error) {
	if !c.holds() {
		return nil, nil
	}
	return nil, c.dev.SendRARP([6]byte(body))
}

func (c *conn) netSetMTU(body []byte) ([]byte, error) {
	mtu := binary.LittleEndian.Uint64(body)
	if mtu > 0xffff {
		return nil, refusal{c.h.malformed("MTU %d", mtu)}
	}
	if err := c.acquire(); err != nil { // the rings are next
		return nil, err
	}
	if err := c.dev.SetMTU(uint16(mtu)); err != nil {
		return nil, refusal{err}
	}
	return nil, nil
}

// setBackendReqFD serves SET_BACKEND_REQ_FD. We send no requests, but hold the descriptor: when it is closed,
// User Mode Linux takes the device for broken.
func (c *conn) setBackendReqFD([]byte) ([]byte, error) {
	if len(c.fds) == 0 {
		return nil, c.h.malformed("no descriptor")
	}
	replace(&c.channel, c.take())
	return nil, nil
}

// setStatus serves SET_STATUS. The status is only kept. That it became 0 must not reset anything: QEMU
// 7.2 says so before it asks where the rings have stopped.
func (c *conn) setStatus(body []byte) ([]byte, error) {
	status := binary.LittleEndian.Uint64(body)
	if status > 0xff {
		return nil, c.h.malformed("status %#x", status)
	}
	c.status = uint8(status)
	return nil, nil
}

func (c *conn) getStatus([]byte) ([]byte, error) { return u64(uint64(c.status)), nil }

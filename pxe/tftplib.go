package pxe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/pin/tftp/v3"

	"polder/pxe/internal/ipstack"
)

// gated sends a file with the library github.com/pin/tftp. Each transfer has a library server of its
// own, in single-port mode, on a connection that is this gate.
//
// The gate is what makes v3.2.0's single-port mode safe to show to guests. It
//
//   - writes the request anew, so that the library sees canonical option names and values: a blksize
//     of 900 digits overran the buffer of its OACK;
//   - passes each awaited ACK once, and drops all others: the library's queue for a transfer has one
//     place, so that duplicates displaced what it waited for;
//   - passes nothing after the last ACK or an ERROR: packets that arrived while the library closed
//     that queue were sent on a closed channel;
//   - never turns on the library's own windows (SetAnticipate), which close the queue twice;
//   - recovers from a panic all the same, at the transfer's border;
//   - sends its own ERROR packets: the library's have code 1 and a text with the host's paths.
type gated struct {
	*transfer
	once    sync.Once
	done    chan struct{} // closed when nothing more is fed to the library
	packets chan []byte   // fed to the library

	mu       sync.Mutex
	started  bool
	ended    bool   // an end was reported
	told     bool   // and the library was given an ERROR, which it will find
	block    uint16 // of the last DATA or OACK sent
	awaiting bool   // its ACK has not been passed
	acked    int64  // bytes
	unacked  int64  // bytes of the last DATA
	answered bool
	reported int64
	quiet    int
}

var errTransferEnded = errors.New("the transfer has ended")

func newGated(t *transfer) *gated {
	// A DATA packet's ACK, and an ERROR behind it, are the most that wait.
	return &gated{transfer: t, done: make(chan struct{}), packets: make(chan []byte, 2)}
}

// start implements [sender].
func (g *gated) start(f *file) {
	g.mu.Lock()
	g.started = true
	ended := g.ended
	g.mu.Unlock()
	if ended {
		return
	}
	defer func() {
		if p := recover(); p != nil {
			g.finish(EventError, fmt.Sprintf("panic in the TFTP library: %v", p))
		}
	}()
	var srv *tftp.Server
	srv = tftp.NewServer(func(_ string, rf io.ReaderFrom) (err error) {
		defer srv.Shutdown() // ends Serve below; it does not wait in single-port mode
		defer func() {
			if p := recover(); p != nil {
				g.finish(EventError, fmt.Sprintf("panic in the TFTP library: %v", p))
			}
		}()
		if o, ok := rf.(tftp.OutgoingTransfer); ok && f.size >= 0 {
			o.SetSize(f.size)
		}
		// Only Read: with Seek the library would measure the file itself.
		_, err = rf.ReadFrom(struct{ io.Reader }{f})
		g.conclude(err)
		return nil
	}, nil)
	srv.EnableSinglePort()
	srv.SetBlockSizeNegotiation(false) // it would ask for a kernel interface's MTU, and take 512
	srv.SetBlockSize(maxBlock)
	timeout := g.s.cfg.Timeout
	if g.req.timeout != 0 {
		timeout = time.Duration(g.req.timeout) * time.Second
	}
	srv.SetTimeout(timeout)
	srv.SetRetries(g.s.cfg.Retries)
	srv.SetBackoff(func(int) time.Duration { return 0 })
	g.packets <- g.request()
	if err := srv.Serve(g); err != nil {
		g.finish(EventError, err.Error())
	}
}

// request is the RRQ for the library.
func (g *gated) request() []byte {
	mode := "octet"
	if g.req.netascii {
		mode = "netascii"
	}
	b := []byte{0, opRRQ}
	add := func(s string) { b = append(append(b, s...), 0) }
	add("file") // the name has been resolved; the library need not see it
	add(mode)
	if g.req.blksize >= defaultBlock { // the library refuses smaller ones
		add("blksize")
		add(strconv.Itoa(g.req.blksize))
	}
	if g.req.tsize && !g.req.netascii { // it would say the size before the conversion
		add("tsize")
		add("0")
	}
	return b
}

// conclude reports how the library ended the transfer.
func (g *gated) conclude(err error) {
	if err == nil {
		g.finish(EventDone, "")
		return
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		g.finish(EventStalled, "")
		return
	}
	if g.finish(EventError, err.Error()) {
		g.s.refuse(g.port, &g.peer, errUndefined, "the file cannot be read")
	}
}

// finish reports the end of the transfer, if nothing has before.
func (g *gated) finish(k EventKind, detail string) bool {
	g.mu.Lock()
	first := !g.ended
	g.ended = true
	acked := g.acked
	g.mu.Unlock()
	if first {
		g.event(k, acked, detail)
	}
	return first
}

// receive implements [sender]: it is the gate's entrance.
func (g *gated) receive(p []byte) {
	if len(p) < tftpHeader {
		return
	}
	switch binary.BigEndian.Uint16(p) {
	case opACK:
		g.mu.Lock()
		pass := g.awaiting && !g.ended && binary.BigEndian.Uint16(p[2:]) == g.block
		if pass {
			g.awaiting, g.answered = false, true
			g.acked += g.unacked
			g.unacked = 0
		}
		g.mu.Unlock()
		if pass {
			g.feed([]byte{0, opACK, p[2], p[3]})
		}
	case opERROR:
		g.mu.Lock()
		first := !g.ended
		g.ended = true
		acked := g.acked
		g.mu.Unlock()
		if first {
			g.refused(p, acked)
			g.tell()
		}
	}
}

// tell has the library end. While it waits for an answer, that is an ERROR. Otherwise its next packet fails, and an
// ERROR could meet it as it ends: it closes the channel on which packets come to it.
func (g *gated) tell() {
	g.mu.Lock()
	waits := g.awaiting
	g.awaiting, g.told = false, waits
	g.mu.Unlock()
	if waits {
		g.feed([]byte{0, opERROR, 0, 0, 0})
	}
}

// feed passes a packet to the library. There is room: an ACK passes only when one is awaited, and an
// ERROR once.
func (g *gated) feed(p []byte) {
	select {
	case g.packets <- p:
	default:
	}
}

// untouched implements [sender]. The library repeats its first packet itself in time.
func (g *gated) untouched() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return !g.answered && !g.ended
}

// cancel implements [sender].
func (g *gated) cancel(detail string) {
	if g.finish(EventAborted, detail) {
		g.tell()
	}
}

// tick implements [sender]. Time-outs are the library's.
func (g *gated) tick() {
	g.mu.Lock()
	acked := g.acked
	g.quiet++
	due := g.quiet >= progressTicks && acked != g.reported && !g.ended
	if due {
		g.quiet, g.reported = 0, acked
	}
	g.mu.Unlock()
	if due {
		g.event(EventProgress, acked, "")
	}
}

// ReadFrom implements [net.PacketConn] for the library: the request first, then what passed the gate.
func (g *gated) ReadFrom(p []byte) (int, net.Addr, error) {
	select {
	case b := <-g.packets:
		return copy(p, b), net.UDPAddrFromAddrPort(g.peer.Addr), nil
	case <-g.done:
		return 0, nil, os.ErrDeadlineExceeded
	}
}

// WriteTo implements [net.PacketConn]. After the end it fails, by which the library ends too.
func (g *gated) WriteTo(p []byte, _ net.Addr) (int, error) {
	if len(p) < tftpHeader || len(p) > tftpHeader+maxBlock {
		return 0, fmt.Errorf("packet of %d bytes from the TFTP library", len(p))
	}
	switch binary.BigEndian.Uint16(p) {
	case opERROR:
		return len(p), nil // conclude says it better
	case opOACK:
		g.mu.Lock()
		g.block, g.awaiting, g.unacked = 0, true, 0
		g.mu.Unlock()
	case opDATA:
		g.mu.Lock()
		g.block, g.awaiting, g.unacked = binary.BigEndian.Uint16(p[2:]), true, int64(len(p)-tftpHeader)
		g.mu.Unlock()
	}
	g.mu.Lock()
	ended, told := g.ended, g.told
	g.mu.Unlock()
	switch {
	case told:
		return len(p), nil // its last one again, before it has seen the ERROR
	case ended:
		return 0, errTransferEnded
	}
	packet := append(make([]byte, ipstack.Headroom, ipstack.Headroom+len(p)), p...)
	g.s.stack.Send(g.port, &g.peer, [][]byte{packet})
	return len(p), nil
}

// SetReadDeadline implements [net.PacketConn]. The library sets one only to wake its reader for good.
func (g *gated) SetReadDeadline(time.Time) error {
	g.once.Do(func() { close(g.done) })
	return nil
}

// Close implements [net.PacketConn].
func (g *gated) Close() error { return g.SetReadDeadline(time.Time{}) }

// LocalAddr implements [net.PacketConn].
func (g *gated) LocalAddr() net.Addr {
	return net.UDPAddrFromAddrPort(netip.AddrPortFrom(g.s.cfg.Address.Addr(), g.port))
}

// SetDeadline implements [net.PacketConn].
func (g *gated) SetDeadline(t time.Time) error { return g.SetReadDeadline(t) }

// SetWriteDeadline implements [net.PacketConn]: writes do not wait.
func (g *gated) SetWriteDeadline(time.Time) error { return nil }

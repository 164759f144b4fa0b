package pxe

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"polder/pxe/internal/ipstack"
	"polder/vswitch"
)

const (
	portTFTP = 69

	// Opcodes and error codes (RFC 1350, section 5 and appendix; RFC 2347).
	opRRQ   = 1
	opWRQ   = 2
	opDATA  = 3
	opACK   = 4
	opERROR = 5
	opOACK  = 6

	errUndefined = 0
	errNotFound  = 1
	errAccess    = 2
	errIllegal   = 4
	errUnknownID = 5
	errOptions   = 8

	tftpHeader = 4 // opcode and block number

	defaultBlock = 512
	minBlock     = 8 // RFC 2348
	maxBlock     = ipstack.MaxPayload - tftpHeader
	maxWindow    = 64 // RFC 7440 allows 65,535; this is 92 KiB in flight, more than a guest's ring holds

	// perClient is how many transfers one guest can have at a time. A guest that was reset in the
	// middle of some opens new ones, and its oldest go.
	perClient = 8

	tickInterval  = 100 * time.Millisecond // of time-outs and progress
	progressTicks = 2                      // between progress events
)

// readRequest is a decoded RRQ. Options that were not given, or not with a valid value, are zero.
type readRequest struct {
	file     string
	netascii bool
	blksize  int // RFC 2348, at most maxBlock
	window   int // RFC 7440, at most maxWindow
	timeout  int // RFC 2349, seconds
	tsize    bool
}

// errMalformed is a request that is not as RFC 1350 and RFC 2347 say.
var errMalformed = errors.New("malformed request")

// parseReadRequest decodes the body of an RRQ, after the opcode. An option with a value out of range
// is ignored, which tells the client that it is not accepted (RFC 2347).
func parseReadRequest(p []byte) (readRequest, error) {
	var r readRequest
	if len(p) == 0 || p[len(p)-1] != 0 {
		return r, errMalformed
	}
	words := strings.Split(string(p[:len(p)-1]), "\x00")
	if len(words) < 2 {
		return r, errMalformed
	}
	r.file = words[0]
	switch strings.ToLower(words[1]) {
	case "octet":
	case "netascii":
		r.netascii = true
	default:
		return r, fmt.Errorf("%w: mode %s", errMalformed, strconv.Quote(printable(words[1], 64)))
	}
	for opts := words[2:]; len(opts) >= 2; opts = opts[2:] {
		n, err := strconv.Atoi(opts[1])
		if err != nil || n < 0 {
			continue
		}
		switch strings.ToLower(opts[0]) {
		case "blksize":
			if n >= minBlock {
				r.blksize = min(n, maxBlock)
			}
		case "windowsize":
			if n >= 1 {
				r.window = min(n, maxWindow)
			}
		case "timeout":
			if n >= 1 && n <= 255 {
				r.timeout = n
			}
		case "tsize":
			r.tsize = true
		}
	}
	return r, nil
}

// oack returns the option acknowledgement of a request for a file of size bytes (-1: unknown), or nil
// if there is nothing to acknowledge.
func (r readRequest) oack(size int64) []byte {
	b := []byte{0, opOACK}
	add := func(name string, value int64) {
		b = append(b, name...)
		b = append(b, 0)
		b = strconv.AppendInt(b, value, 10)
		b = append(b, 0)
	}
	if r.blksize != 0 {
		add("blksize", int64(r.blksize))
	}
	if r.tsize && size >= 0 && !r.netascii { // in netascii what is sent has another size
		add("tsize", size)
	}
	if r.timeout != 0 {
		add("timeout", int64(r.timeout))
	}
	if r.window != 0 {
		add("windowsize", int64(r.window))
	}
	if len(b) == 2 {
		return nil
	}
	return b
}

// A sender sends one file. There are two kinds: windowed, our own, and gated, around the library.
type sender interface {
	// start sends the first packet; the file is the sender's from now on. It returns when the transfer
	// has ended, one way or the other.
	start(f *file)
	// receive takes a packet from the client's transfer ID, on the stack's goroutine.
	receive(p []byte)
	// untouched reports that the client has not answered the first packet yet, and sends it again.
	untouched() bool
	// tick passes tickInterval.
	tick()
	// cancel ends the transfer as soon as possible.
	cancel(detail string)
}

// transfer is what the two kinds of senders share.
type transfer struct {
	s       *Server
	id      uint64
	client  Client
	peer    ipstack.Peer
	raw     []byte // the RRQ as it came
	req     readRequest
	began   time.Time
	size    atomic.Int64 // bytes; -1: not known, or not yet
	sender  sender
	port    uint16 // the transfer ID; set before the sender starts
	release func()
}

// tftpd is the TFTP service: its transfers by the peer that asked. A peer is a MAC, an address and a
// port, since that is all RFC 1350 has to tell transfers apart on the client's side.
type tftpd struct {
	mu        sync.Mutex
	transfers map[ipstack.Peer]*transfer
}

// receiveTFTP handles a packet to port 69. It runs on the stack's goroutine, so it only looks at the
// request; finding the file and all that can wait is the new transfer's goroutine's.
func (s *Server) receiveTFTP(d *ipstack.Datagram) {
	if len(d.Payload) < 2 {
		return
	}
	switch op := binary.BigEndian.Uint16(d.Payload); op {
	case opRRQ:
	case opWRQ:
		s.refuse(portTFTP, &d.From, errAccess, "this server is read-only")
		return
	case opERROR:
		return // never answered (RFC 1350, section 7)
	default:
		s.refuse(portTFTP, &d.From, errIllegal, "not a request")
		return
	}
	req, err := parseReadRequest(d.Payload[2:])
	if err != nil {
		s.warn("TFTP request refused", "mac", vswitch.MAC(d.From.MAC), "err", err)
		s.refuse(portTFTP, &d.From, errIllegal, "malformed request")
		return
	}

	s.tftp.mu.Lock()
	defer s.tftp.mu.Unlock()
	if old := s.tftp.transfers[d.From]; old != nil {
		// The same request before anything came back is a repetition: the client has not heard of
		// the first yet, or has heard and will know only that one's transfer ID.
		if bytes.Equal(old.raw, d.Payload) && old.sender.untouched() {
			return
		}
		old.sender.cancel("the client asked anew")
		delete(s.tftp.transfers, d.From)
	}
	var own []*transfer
	for peer, t := range s.tftp.transfers {
		if peer.MAC == d.From.MAC {
			own = append(own, t)
		}
	}
	if len(own) >= perClient {
		sort.Slice(own, func(i, j int) bool { return own[i].id < own[j].id })
		own[0].sender.cancel("the client has too many transfers")
		delete(s.tftp.transfers, own[0].peer)
	}
	if s.closing || s.tftpRunning.Load() >= int64(s.cfg.MaxTransfers) {
		s.warn("TFTP request refused: too many transfers", "mac", vswitch.MAC(d.From.MAC))
		s.refuse(portTFTP, &d.From, errUndefined, "too many transfers, try again")
		return
	}
	t := &transfer{
		s: s, id: s.nextTransfer.Add(1), client: s.clientAt(d.From), peer: d.From,
		raw: bytes.Clone(d.Payload), req: req, began: time.Now(),
	}
	t.size.Store(-1)
	if req.netascii || s.libraryServesOctet && req.window == 0 {
		t.sender = newGated(t)
	} else {
		t.sender = newWindowed(t)
	}
	s.tftp.transfers[d.From] = t
	s.tftpRunning.Add(1)
	s.wg.Add(1)
	go t.run()
}

// cancelTransfers ends the transfers of a guest that was reset: nobody waits for them any more.
func (s *Server) cancelTransfers(mac vswitch.MAC, detail string) {
	s.tftp.mu.Lock()
	defer s.tftp.mu.Unlock()
	for peer, t := range s.tftp.transfers {
		if peer.MAC == mac {
			t.sender.cancel(detail)
			delete(s.tftp.transfers, peer)
		}
	}
}

// run opens the file and sends it.
func (t *transfer) run() {
	defer t.s.wg.Done()
	defer t.s.tftpRunning.Add(-1)
	defer t.forget()
	var err error
	t.port, t.release, err = t.s.stack.HandleUDP(0, func(d *ipstack.Datagram) {
		if d.From != t.peer {
			// RFC 1350, section 4: tell the stranger, and leave the transfer alone.
			t.s.refuse(d.To.Port(), &d.From, errUnknownID, "unknown transfer ID")
			return
		}
		t.sender.receive(d.Payload)
	})
	if err != nil {
		t.event(EventError, 0, err.Error())
		t.s.refuse(portTFTP, &t.peer, errUndefined, "no transfer ID is free")
		return
	}
	defer t.release()
	f, err := t.s.files.open(t.req.file, t.client)
	if err != nil {
		t.openFailed(err)
		return
	}
	defer f.Close()
	t.size.Store(f.size)
	t.event(EventRequest, 0, "")
	t.sender.start(f)
}

// openFailed answers a request for a file that cannot be sent. The client is not told why: errors name
// the host's paths.
func (t *transfer) openFailed(err error) {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		t.s.refuse(t.port, &t.peer, errNotFound, "file not found")
		t.event(EventNotFound, 0, "")
	case errors.Is(err, errEscape), errors.Is(err, fs.ErrPermission):
		t.s.refuse(t.port, &t.peer, errAccess, "access violation")
		t.event(EventError, 0, err.Error())
	default:
		t.s.refuse(t.port, &t.peer, errUndefined, "the file cannot be read")
		t.event(EventError, 0, err.Error())
	}
}

// forget takes the transfer off the list, unless the same client has a new one there.
func (t *transfer) forget() {
	t.s.tftp.mu.Lock()
	defer t.s.tftp.mu.Unlock()
	if t.s.tftp.transfers[t.peer] == t {
		delete(t.s.tftp.transfers, t.peer)
	}
}

// event reports a step of the transfer.
func (t *transfer) event(k EventKind, bytes int64, detail string) {
	now := time.Now()
	e := Event{
		Kind: k, Client: t.client, Detail: detail,
		Proto: "tftp", Transfer: t.id, File: printable(t.req.file, 255), Size: t.size.Load(), Bytes: bytes,
		Took: now.Sub(t.began),
	}
	t.s.emit(e, now)
}

// refused reports how a client ended a transfer by an ERROR packet, p, after acked bytes.
func (t *transfer) refused(p []byte, acked int64) {
	code, text := uint16(errUndefined), ""
	if len(p) >= tftpHeader {
		code = binary.BigEndian.Uint16(p[2:])
		text, _, _ = strings.Cut(string(p[tftpHeader:]), "\x00")
	}
	if acked == 0 && t.req.tsize {
		// Firmware asks for the size first and then ends that transfer, EDK2 with code 8, Intel's ROM
		// with code 0; then it asks for the file.
		t.event(EventProbe, 0, "")
		return
	}
	t.event(EventAborted, acked, fmt.Sprintf("the client sent error %d %q", code, printable(text, 64)))
}

// refuse sends an ERROR packet.
func (s *Server) refuse(from uint16, to *ipstack.Peer, code uint16, text string) {
	p := make([]byte, ipstack.Headroom, ipstack.Headroom+tftpHeader+len(text)+1)
	p = binary.BigEndian.AppendUint16(p, opERROR)
	p = binary.BigEndian.AppendUint16(p, code)
	p = append(p, text...)
	p = append(p, 0)
	s.stack.Send(from, to, [][]byte{p})
}

// clientAt returns what is known of the guest at a peer.
func (s *Server) clientAt(p ipstack.Peer) Client {
	c, _ := s.guests.find(vswitch.MAC(p.MAC))
	c.Addr = p.Addr.Addr()
	c.Server = s.cfg.Address.Addr()
	return c
}

// tickTFTP passes tickInterval for all transfers.
func (s *Server) tickTFTP(scratch []*transfer) []*transfer {
	scratch = scratch[:0]
	s.tftp.mu.Lock()
	for _, t := range s.tftp.transfers {
		scratch = append(scratch, t)
	}
	s.tftp.mu.Unlock()
	for _, t := range scratch {
		t.sender.tick()
	}
	clear(scratch)
	return scratch
}

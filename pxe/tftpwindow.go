package pxe

import (
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"time"

	"polder/pxe/internal/ipstack"
)

const (
	readAhead  = 64 << 10 // bytes read from a file at a time, beside the transfer
	blockStart = ipstack.Headroom + tftpHeader
)

// windowed is our own sender: RFC 7440 with any window, of which window 1 is RFC 1350's lock step.
//
// An ACK is answered where it arrives, on the stack's goroutine: take the next block from what the
// reader has read ahead, send. The transfer's own goroutine only reads the file; it sends too when the
// other had to stop for want of data. tick sends again what was not acknowledged in time.
//
// Blocks count from 1 and do not wrap here; on the wire they are modulo 65,536, 0 following 65,535.
//
//	  base                    next        filled      base+window
//	----+-----------------------+-----------+-------------+
//	    |  sent, not acknowledged |  ready    |  not read   |
type windowed struct {
	*transfer
	timeout int // ticks
	stop    chan struct{}
	chunks  chan chunk  // read ahead
	spare   chan []byte // their memory, back to the reader

	mu       sync.Mutex
	phase    phase
	acked    bool     // the client has answered
	oack     []byte   // with headroom; nil: no options
	blksize  int      // bytes
	window   uint64   // blocks
	ring     [][]byte // packets of blocks base to filled, and the one being filled; block n at n%window
	batch    [][]byte // scratch
	base     uint64
	next     uint64
	filled   uint64
	part     int    // bytes of the block after the filled ones
	last     uint64 // number of the last block; 0: not read yet
	total    int64  // bytes in all, once last is known
	chunk    chunk  // the current one, with what is left of it
	starved  bool   // there was room in the window, but nothing read
	rewound  bool   // the window was sent again and not acknowledged since
	idle     int    // ticks since the client moved the transfer on
	retries  int
	reported int64 // bytes in the last progress event
	quiet    int   // ticks since
}

type phase uint8

const (
	phaseOpening phase = iota // nothing is sent yet
	phaseOptions              // the OACK is sent and not acknowledged
	phaseData
	phaseEnded
)

// chunk is a piece of the file. Its memory goes back to windowed.spare.
type chunk struct {
	data []byte // not sent yet
	mem  []byte
	err  error // why the file ends here: io.EOF or a failure
}

func newWindowed(t *transfer) *windowed {
	w := &windowed{
		transfer: t,
		timeout:  int(t.s.cfg.Timeout / tickInterval),
		stop:     make(chan struct{}),
		chunks:   make(chan chunk, 1),
		spare:    make(chan []byte, 3),
		blksize:  defaultBlock,
		window:   1,
		base:     1, next: 1, filled: 1,
	}
	if t.req.timeout != 0 {
		w.timeout = int(time.Duration(t.req.timeout) * time.Second / tickInterval)
	}
	if t.req.blksize != 0 {
		w.blksize = t.req.blksize
	}
	if t.req.window != 0 {
		w.window = uint64(t.req.window)
	}
	return w
}

// start implements [sender].
func (w *windowed) start(f *file) {
	w.mu.Lock()
	if w.phase == phaseEnded { // cancelled meanwhile
		w.mu.Unlock()
		return
	}
	w.ring = make([][]byte, w.window)
	for i := range w.ring {
		w.ring[i] = make([]byte, blockStart, blockStart+w.blksize)
	}
	w.batch = make([][]byte, 0, w.window)
	w.phase, w.starved = phaseData, true
	if o := w.req.oack(f.size); o != nil {
		w.oack = append(make([]byte, ipstack.Headroom), o...)
		w.phase = phaseOptions
		w.sendOptions()
	}
	w.mu.Unlock()

	memory := readAhead
	if f.size >= 0 && f.size < readAhead {
		memory = int(f.size) + 1 // one read finds the end
	}
	for range cap(w.spare) {
		var mem []byte
		select {
		case mem = <-w.spare:
		default:
			mem = make([]byte, memory)
		}
		if w.read(f, mem) {
			return
		}
	}
	for {
		select {
		case mem := <-w.spare:
			if w.read(f, mem) {
				return
			}
		case <-w.stop:
			return
		}
	}
}

// read reads the next chunk into mem and passes it on. It reports the end of the transfer, for which
// it waits when the file has been read.
func (w *windowed) read(f *file, mem []byte) (ended bool) {
	n, err := io.ReadFull(f, mem)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = io.EOF
	}
	select {
	case w.chunks <- chunk{data: mem[:n], mem: mem, err: err}:
	case <-w.stop:
		return true
	}
	w.mu.Lock()
	if w.phase == phaseData && w.starved {
		w.pump()
	}
	w.mu.Unlock()
	if err != nil {
		<-w.stop
		return true
	}
	return false
}

// receive implements [sender].
func (w *windowed) receive(p []byte) {
	if len(p) < tftpHeader {
		return
	}
	switch binary.BigEndian.Uint16(p) {
	case opACK:
		w.mu.Lock()
		w.ack(binary.BigEndian.Uint16(p[2:]))
		w.mu.Unlock()
	case opERROR:
		w.mu.Lock()
		acked, ok := w.progress(), w.end()
		w.mu.Unlock()
		if ok {
			w.refused(p, acked)
		}
	}
}

// ack handles the acknowledgement of a block. It is called with mu held.
func (w *windowed) ack(block uint16) {
	if w.phase == phaseOptions {
		if block == 0 {
			w.acked, w.idle, w.retries = true, 0, 0
			w.phase = phaseData
			w.pump()
		}
		return
	}
	if w.phase != phaseData {
		return
	}
	// How far the client is ahead of the last acknowledgement, modulo 65,536.
	n := uint64(block - uint16(w.base-1))
	switch {
	case n > w.next-w.base:
		return // old, or of a block it cannot have
	case n == 0:
		// A repeated acknowledgement. In lock step it is never answered, or each duplicate would
		// double all that follows (RFC 1123, section 4.2.3.1). With a window it says that the first
		// block of the window was lost; it is believed once.
		if w.window == 1 || w.rewound || w.next == w.base {
			return
		}
		w.rewound = true
		w.next = w.base
	case n < w.next-w.base:
		// Within the window: the block after it was lost (RFC 7440, section 4).
		w.rewound = true
		w.base += n
		w.next = w.base
	default:
		w.rewound = false
		w.base += n
	}
	w.acked, w.idle, w.retries = true, 0, 0
	if w.last != 0 && w.base > w.last {
		if w.end() {
			w.event(EventDone, w.progress(), "")
		}
		return
	}
	w.pump()
}

// pump sends what the window has room for and the reader has read. It is called with mu held.
func (w *windowed) pump() {
	w.fill()
	w.batch = w.batch[:0]
	for ; w.next < w.filled; w.next++ {
		w.batch = append(w.batch, w.ring[w.next%w.window])
	}
	if len(w.batch) > 0 {
		w.s.stack.Send(w.port, &w.peer, w.batch)
	}
}

// fill makes packets of what the reader has read, up to the window's end.
func (w *windowed) fill() {
	w.starved = false
	for w.last == 0 && w.filled < w.base+w.window {
		p := w.ring[w.filled%w.window][:blockStart+w.part]
		n := min(len(w.chunk.data), w.blksize-w.part)
		p = append(p, w.chunk.data[:n]...)
		w.chunk.data = w.chunk.data[n:]
		w.part += n
		if w.part < w.blksize {
			if w.chunk.err == nil {
				if !w.nextChunk() {
					w.starved = true
					return
				}
				continue
			}
			if w.chunk.err != io.EOF {
				w.fail(w.chunk.err)
				return
			}
			w.last = w.filled // a block that is not full is the last, an empty one if need be
			w.total = int64(w.last-1)*int64(w.blksize) + int64(w.part)
		}
		binary.BigEndian.PutUint16(p[ipstack.Headroom:], opDATA)
		binary.BigEndian.PutUint16(p[ipstack.Headroom+2:], uint16(w.filled))
		w.ring[w.filled%w.window] = p
		w.filled++
		w.part = 0
	}
}

// nextChunk takes the next chunk if it has been read.
func (w *windowed) nextChunk() bool {
	select {
	case c := <-w.chunks:
		if w.chunk.mem != nil {
			w.spare <- w.chunk.mem // has room for all there are
		}
		w.chunk = c
		return true
	default:
		return false
	}
}

// fail ends the transfer because the file cannot be read on.
func (w *windowed) fail(err error) {
	if w.end() {
		w.s.refuse(w.port, &w.peer, errUndefined, "the file cannot be read")
		w.event(EventError, w.progress(), err.Error())
	}
}

// end makes the transfer end, and reports whether it had not before.
func (w *windowed) end() bool {
	if w.phase == phaseEnded {
		return false
	}
	w.phase = phaseEnded
	close(w.stop)
	return true
}

// progress returns how many bytes are acknowledged.
func (w *windowed) progress() int64 {
	if w.last != 0 && w.base > w.last {
		return w.total
	}
	return int64(w.base-1) * int64(w.blksize)
}

func (w *windowed) sendOptions() {
	w.s.stack.Send(w.port, &w.peer, [][]byte{w.oack})
}

// resend sends again all that is not acknowledged.
func (w *windowed) resend() {
	if w.phase == phaseOptions {
		w.sendOptions()
		return
	}
	w.rewound = true
	w.next = w.base
	w.pump()
}

// untouched implements [sender].
func (w *windowed) untouched() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.phase == phaseOpening:
		return true
	case w.phase == phaseEnded || w.acked:
		return false
	}
	w.resend()
	return true
}

// cancel implements [sender].
func (w *windowed) cancel(detail string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.end() {
		w.event(EventAborted, w.progress(), detail)
	}
}

// tick implements [sender].
func (w *windowed) tick() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.phase == phaseOpening || w.phase == phaseEnded {
		return
	}
	if w.quiet++; w.quiet >= progressTicks && w.progress() != w.reported {
		w.quiet, w.reported = 0, w.progress()
		w.event(EventProgress, w.reported, "")
	}
	if w.phase == phaseData && w.next == w.base {
		return // it is the file that makes us wait
	}
	if w.idle++; w.idle <= w.timeout { // the first tick can come at once
		return
	}
	w.idle = 0
	if w.retries++; w.retries <= w.s.cfg.Retries {
		w.resend()
		return
	}
	if !w.end() {
		return
	}
	if w.last != 0 && w.base == w.last {
		// Some ROMs start what they loaded before they acknowledge its last block.
		w.event(EventDone, w.total, "the last block was not acknowledged")
		return
	}
	w.event(EventStalled, w.progress(), "")
}

package porttest

import (
	"slices"
	"sync"

	"polder/vswitch"
)

// Recorder is a port that keeps a copy of each frame it is given, up to a
// limit, until somebody takes them.
type Recorder struct {
	mu     sync.Mutex
	frames [][]byte // those held; beyond their number, memory for more
	room   int
	closed bool
}

var _ vswitch.Port = (*Recorder)(nil)

// NewRecorder makes a port with room for that many frames. Deliver does not
// allocate for frames of up to 1514 bytes.
func NewRecorder(room int) *Recorder {
	const usual = 1514
	r := &Recorder{frames: make([][]byte, room), room: room}
	memory := make([]byte, room*usual)
	for i := range r.frames {
		r.frames[i] = memory[i*usual : i*usual : (i+1)*usual]
	}
	r.frames = r.frames[:0]
	return r
}

// Deliver keeps copies of frames while there is room.
func (r *Recorder) Deliver(frames []*vswitch.Frame) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return 0
	}
	n := min(len(frames), r.room-len(r.frames))
	for _, f := range frames[:n] {
		i := len(r.frames)
		r.frames = r.frames[:i+1]
		r.frames[i] = f.AppendTo(r.frames[i][:0])
	}
	return n
}

// Take returns the frames held, in order, and makes room for others. The
// result is the caller's.
func (r *Recorder) Take() [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	taken := make([][]byte, len(r.frames))
	for i, b := range r.frames {
		taken[i] = slices.Clone(b)
	}
	r.frames = r.frames[:0]
	return taken
}

// Close makes Deliver take nothing from now on.
func (r *Recorder) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
}

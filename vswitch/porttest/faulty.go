package porttest

import (
	"math/rand/v2"
	"sync"

	"polder/vswitch"
)

// Faults says how often a [Faulty] port goes wrong: probabilities, 0 to 1.
type Faults struct {
	Refuse float64 // of a batch: that the port pretends to be full somewhere in it
	Lose   float64 // of a frame: that it gets lost behind the port's back
	Double float64 // of a frame: that it arrives twice
}

// Faulty stands before a port and makes a bad one of it. What goes wrong
// depends only on the seed and on the frames delivered, so that a test which
// fails can be run again.
type Faulty struct {
	port   vswitch.Port
	faults Faults

	mu     sync.Mutex // held while port takes frames
	random *rand.Rand
	list   []*vswitch.Frame // of the batch at hand
}

var _ vswitch.Port = (*Faulty)(nil)

// NewFaulty makes a port that passes frames on to p with faults.
func NewFaulty(p vswitch.Port, faults Faults, seed uint64) *Faulty {
	return &Faulty{port: p, faults: faults, random: rand.New(rand.NewPCG(seed, 0))}
}

// Deliver passes on what it does not refuse or lose. It returns how many frames
// its caller may believe delivered: those lost are among them, those that did
// not fit into the port behind, and all after them, are not.
func (f *Faulty) Deliver(frames []*vswitch.Frame) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(frames) > 0 && f.happens(f.faults.Refuse) {
		frames = frames[:f.random.IntN(len(frames))]
	}
	f.list = f.list[:0]
	for _, frame := range frames {
		if f.happens(f.faults.Lose) {
			continue
		}
		f.list = append(f.list, frame)
		if f.happens(f.faults.Double) {
			f.list = append(f.list, frame)
		}
	}
	passed := f.port.Deliver(f.list)
	n := len(frames)
	if passed < len(f.list) {
		refused := f.list[passed]
		for n = 0; frames[n] != refused; n++ {
			continue
		}
	}
	clear(f.list)
	return n
}

func (f *Faulty) happens(probability float64) bool {
	return probability > 0 && f.random.Float64() < probability
}

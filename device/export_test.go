package device

// RekickDelay is how long a line stays untold after UNMASK.
const RekickDelay = rekickDelay

// The backlog's limits: in frames, bytes of one, and frames moved at a time; and when the timer looks at it.
const (
	BacklogFrames = backlogFrames
	MaxTulipFrame = maxTulipFrame
	DrainBudget   = drainBudget
	DrainDelay    = drainDelay
)

// Pin returns the level of the chip's interrupt pin.
func (t *Tulip) Pin() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.intx.level
}

// Waiting returns how many frames wait in the backlog, and whether the timer is set.
func (t *Tulip) Waiting() (frames int, timer bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.backlog.count, t.armedFor != 0
}

// Busy reports whether the transmitter has work to do, or frames on their way.
func (t *Tulip) Busy() bool {
	t.pullMu.Lock()
	defer t.pullMu.Unlock()
	return t.Arm()
}

// Running reports whether Run has begun, and not ended.
func (t *Tulip) Running() bool { return t.in.Load() != nil }

// Pull pulls from a transmit ring of a synthetic adapter, whose worker sleeps.
func (v *VirtioNet) Pull(pair int) int { return v.tx[pair].Pull(txBudget) }

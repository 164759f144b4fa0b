package device

import (
	"context"
	"runtime"
	"time"

	"polder/device/vfiouser"
)

// Queue is a source of frames that a worker can drive: an adapter's transmit list, a
// virtqueue, a packet socket.
type Queue interface {
	// Pull takes up to budget frames, forwards them and completes them. It returns how
	// many there were; 0 means that there is nothing to send.
	Pull(budget int) int

	// Arm asks to be woken by the next frame and reports whether one has arrived already.
	Arm() (pending bool)

	// Wait sleeps until the queue is woken after Arm, or ctx is done.
	Wait(ctx context.Context) error
}

// pullBudget bounds the frames of one Pull, and with it how long a chip that is told to stop
// may go on: well inside the 1.3 ms for which Linux's driver polls CSR5.
const pullBudget = 16

// spinTime is how long a worker looks out for the next frame before it sleeps.
const spinTime = 20 * time.Microsecond

// work moves frames from q to the switch, up to budget at a time, until ctx is done. When there are none it looks
// out for more for a moment, as far as spinners permit, before it sleeps.
func work(ctx context.Context, q Queue, budget int, spinners *vfiouser.Spinners) {
	for ctx.Err() == nil {
		if q.Pull(budget) > 0 || spin(q, budget, spinners) || q.Arm() {
			continue
		}
		if q.Wait(ctx) != nil {
			return
		}
	}
}

// spin pulls for spinTime, or until there was a frame, which it reports.
func spin(q Queue, budget int, spinners *vfiouser.Spinners) bool {
	if !spinners.Start() {
		return false
	}
	defer spinners.Stop()
	for begin := time.Now(); time.Since(begin) < spinTime; {
		if q.Pull(budget) > 0 {
			return true
		}
		runtime.Gosched()
	}
	return false
}

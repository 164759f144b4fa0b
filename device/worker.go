package device

import "context"

// Queue is a source of frames that a Worker can drive: an adapter's transmit list, a
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

// work moves frames from q to the switch until ctx is done.
func work(ctx context.Context, q Queue) {
	for ctx.Err() == nil {
		if q.Pull(pullBudget) > 0 || q.Arm() {
			continue
		}
		if q.Wait(ctx) != nil {
			return
		}
	}
}

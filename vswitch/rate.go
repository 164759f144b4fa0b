package vswitch

import (
	"sync/atomic"
	"time"
)

// rate is a limit of so much a second. The zero value is none.
type rate struct {
	perSecond int64
	scale     int64 // what of perSecond one unit of cost is: 8 bits a byte, one frame a frame
	burst     int64 // ns: what may be sent at once, as the time it takes at the rate
}

// stormRate returns the rate for a StormLimit: in frames, with bursts of a
// second.
func stormRate(limit uint32) rate {
	return rate{perSecond: int64(limit), scale: 1, burst: int64(time.Second)}
}

// minBurst is the least burst of a bandwidth: two packets of 64 KiB, since one
// that is to be cut counts as a whole and at once.
const minBurst = 128 << 10

// bandwidth returns the rate for a Bandwidth: in bytes, with bursts of a tenth
// of a second.
func bandwidth(bits uint64) rate {
	r := rate{perSecond: int64(bits), scale: 8}
	if bits > 0 {
		r.burst = max(int64(time.Second/10), r.time(minBurst))
	}
	return r
}

// limited reports whether there is a limit.
func (r *rate) limited() bool { return r.perSecond > 0 }

// time returns the time that cost takes at the rate, in ns.
func (r *rate) time(cost int) int64 {
	return int64(cost) * r.scale * int64(time.Second) / r.perSecond
}

// meter is how far a sender has used up a rate: the time, in ns on the
// switch's clock, at which it will have paid for all that it sent. It is the
// token bucket in the form of the "virtual scheduling algorithm" of ITU-T I.371,
// in which one word is all its state.
type meter struct{ paid atomic.Int64 }

// take reports whether something may be sent now, and if so, charges for it.
func (m *meter) take(r *rate, now int64, cost int) bool {
	for {
		paid := m.paid.Load()
		next := max(paid, now) + r.time(cost)
		if next-now > r.burst {
			return false
		}
		if m.paid.CompareAndSwap(paid, next) {
			return true
		}
	}
}

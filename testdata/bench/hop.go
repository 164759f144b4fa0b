package main

import (
	"sync/atomic"
	"time"
)

// hop returns how long one processor takes to see what the other has written, in nanoseconds: the median over 20 ms of
// passing a number to and fro. Around 50 says that the two share a cache, around 250 that they do not, and far more
// that something else runs on them. On a virtual machine it changes from minute to minute, and with it every rate
// between the two.
func hop(c cores) (float64, error) {
	var ball [2]struct {
		n atomic.Uint64
		_ [15]uint64 // no other value in its cache line, or in the one that is fetched with it
	}
	var done atomic.Bool
	ready := make(chan error, 1)
	go func() {
		err := onCore(c.backEnd, func() error {
			ready <- nil
			for !done.Load() {
				ball[1].n.Store(ball[0].n.Load())
			}
			return nil
		})
		if err != nil {
			ready <- err
		}
	}()
	if err := <-ready; err != nil {
		return 0, err
	}
	defer done.Store(true)
	var times []float64
	err := onCore(c.generator, func() error {
		n := uint64(0)
		for end := time.Now().Add(20 * time.Millisecond); time.Now().Before(end); {
			const passes = 200
			begin := time.Now()
			for range passes {
				n++
				for ball[0].n.Store(n); ball[1].n.Load() != n; {
				}
			}
			times = append(times, float64(time.Since(begin).Nanoseconds())/(2*passes))
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	return median(times), nil
}

package pxe

import (
	"bytes"
	"runtime"
	"sync"
	"testing"

	"polder/pxe/internal/ipstack"
	"polder/vswitch"
	"polder/vswitch/porttest"
)

// inboxPort is the receiving half of a Server, with a test behind it instead of the stack.
type inboxPort struct {
	*inbox
	stall sync.Mutex // held while the receiver is to wait
	mu    sync.Mutex
	got   [][]byte
}

func (p *inboxPort) Deliver(frames []*vswitch.Frame) int { return p.deliver(frames) }

func TestPort(t *testing.T) {
	porttest.TestPort(t, func(t *testing.T) porttest.Harness {
		p := &inboxPort{inbox: &inbox{own: serverMAC, wake: make(chan struct{}, 1)}}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			p.receive(func(frame []byte) {
				p.stall.Lock()
				defer p.stall.Unlock()
				p.mu.Lock()
				defer p.mu.Unlock()
				p.got = append(p.got, bytes.Clone(frame))
			})
		}()
		stalled := false
		t.Cleanup(func() {
			if stalled {
				p.stall.Unlock()
			}
			p.close()
			<-ended
		})
		return porttest.Harness{
			Port:    p,
			Close:   p.close,
			Address: serverMAC,
			MaxLen:  ipstack.MaxFrame,
			Stall: func() {
				if !stalled {
					p.stall.Lock()
					stalled = true
				}
			},
			Take: func() [][]byte {
				if stalled {
					p.stall.Unlock()
					stalled = false
				}
				for {
					p.inbox.mu.Lock()
					idle := p.count == 0 || p.closed
					p.inbox.mu.Unlock()
					if idle {
						break
					}
					runtime.Gosched()
				}
				p.mu.Lock()
				defer p.mu.Unlock()
				defer func() { p.got = nil }()
				return p.got
			},
		}
	})
}

// TestDeliverFilters proves that frames for others, which a switch floods, cost the service no room.
func TestDeliverFilters(t *testing.T) {
	b := &inbox{own: serverMAC, wake: make(chan struct{}, 1)}
	frame := func(dst vswitch.MAC, n int) *vswitch.Frame {
		f := make([]byte, n)
		copy(f, dst[:])
		return &vswitch.Frame{Head: f, Len: n}
	}
	list := []*vswitch.Frame{
		frame(guestMAC, 60),
		frame(vswitch.MAC{0x33, 0x33, 0, 0, 0, 1}, 60),
		frame(vswitch.MAC{1, 0, 0x5e, 0, 0, 0xfb}, 60),
		frame(serverMAC, ipstack.MaxFrame+1),
		frame(serverMAC, 60),
		frame(broadcast, 60),
		frame(allRouters, ipstack.MaxFrame),
	}
	if n := b.deliver(list); n != len(list) || b.count != 3 {
		t.Errorf("took %d of %d, kept %d; want all, 3", n, len(list), b.count)
	}
}

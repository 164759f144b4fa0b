package vhostuser

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// ErrTakenOver is the cause given to [Backend.Detach] when another front end has started rings, and the one that had the
// device had stopped all of its own: the guest has migrated.
var ErrTakenOver = errors.New("another front end has taken the device over")

// errInUse is why a front end that starts a ring loses its connection.
var errInUse = errors.New("rings of another front end run: its guest has not stopped")

// custody says which of several front ends has a device. The first to come has it. Another one has nothing but its
// connection, which remembers what was said, until it starts a ring: then the device becomes its own, if the other has
// stopped all rings, as the source of a migration does before its destination goes on.
type custody struct {
	grace time.Duration // how long a front end waits for the rings of another to stop

	mu      sync.Mutex // held while a message is acted on: front ends take turns. It guards the rest
	changed *sync.Cond // a ring may have stopped, or a front end left
	present []*conn    // that have spoken, in the order in which they came
	holder  *conn      // nil: nobody
}

func newCustody(grace time.Duration) *custody {
	c := &custody{grace: grace}
	c.changed = sync.NewCond(&c.mu)
	return c
}

// enter tells that a front end has spoken for the first time. It gets the device if nobody has it.
func (c *conn) enter() error {
	d := c.custody
	d.mu.Lock()
	defer d.mu.Unlock()
	d.present = append(d.present, c)
	if d.holder != nil {
		return nil
	}
	return c.hold()
}

// act acts on the message under way, when no other front end does.
func (c *conn) act() ([]byte, error) {
	d := c.custody
	d.mu.Lock()
	defer d.mu.Unlock()
	defer d.changed.Broadcast()
	return c.dispatch()
}

// acquire makes sure that the device is c's. It waits for the rings of another front end to stop, and for those of one that was
// killed, whose EOF is on its way. Called with the lock, which it releases meanwhile.
func (c *conn) acquire() error {
	d := c.custody
	if d.holder == c {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(c.ctx, d.grace, errInUse)
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.changed.Broadcast()
	})
	defer stop()
	for d.holder != nil && d.holder != c && d.holder.busy() {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		d.changed.Wait()
	}
	switch d.holder {
	case c: // it was left to us
		return nil
	case nil:
	default:
		d.holder.log.Info("vhost-user: the device goes to another front end", "to", c.peer)
		d.dismiss(ErrTakenOver)
	}
	return c.hold()
}

// hold attaches c to the device, which nobody has, and repeats what c's front end has said. Called with the lock.
func (c *conn) hold() error {
	if err := c.dev.Attach(c.peer, c.hangUp); err != nil {
		return err
	}
	c.custody.holder = c
	c.log.Info("vhost-user: front end attached", "peer", c.peer)
	if c.featured {
		if err := c.dev.SetFeatures(c.features &^ ours); err != nil {
			return err
		}
	}
	if len(c.mem) > 0 {
		if err := c.dev.SetMemory(slices.Clone(c.mem)); err != nil {
			return err
		}
	}
	return c.tellLog(false)
}

// leave tells that c's connection has ended, and why. The device goes to the next front end that is there.
func (c *conn) leave(cause error) {
	d := c.custody
	d.mu.Lock()
	defer d.mu.Unlock()
	defer d.changed.Broadcast()
	d.present = slices.DeleteFunc(d.present, func(p *conn) bool { return p == c })
	if d.holder != c {
		return
	}
	d.dismiss(cause)
	for _, next := range d.present {
		if next.ctx.Err() != nil { // it is about to leave, too
			continue
		}
		if err := next.hold(); err != nil {
			next.hangUp(err)
		}
		return
	}
}

// dismiss detaches the holder. Called with the lock.
func (d *custody) dismiss(cause error) {
	c := d.holder
	d.holder = nil
	for i := range c.rings {
		c.rings[i].running = false
	}
	c.logging = false
	c.dev.Detach(cause)
}

// holds reports whether the device is c's. Called with the lock.
func (c *conn) holds() bool { return c.custody.holder == c }

// busy reports whether rings of c run. Called with the lock.
func (c *conn) busy() bool {
	return slices.ContainsFunc(c.rings, func(v vring) bool { return v.running })
}

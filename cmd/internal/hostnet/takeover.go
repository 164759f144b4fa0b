package hostnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"
)

// Takeover is a NIC that is being taken over, or has been. Its methods may be called from any
// goroutine.
type Takeover struct {
	dir string // of the journal
	log *slog.Logger
	stepper

	mu      sync.Mutex // held while the host's network is changed
	journal *journal   // nil: nothing is taken over (any more)
	plan    *Plan      // nil after a restart
	timer   *time.Timer
	undoing bool // a rollback has begun: it can only be completed

	// These do not change.
	external External
	device   string
	mtu      int
}

// External is what the switch was planned to be bound to.
func (t *Takeover) External() External { return t.external }

// Switch is the switch's name.
func (t *Takeover) Switch() string { return t.external.Switch }

// Device is the host's own adapter: a bridge, a TAP, or "".
func (t *Takeover) Device() string { return t.device }

// MTU is that of the network.
func (t *Takeover) MTU() int { return t.mtu }

// Confirmed tells whether the take-over is kept. One that is not, and that nobody waits for, is rolled back.
func (t *Takeover) Confirmed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.journal != nil && t.journal.Confirmed
}

// Begin writes the journal into dir, which is made if it is not there, makes the host's own adapter, and brings a NIC up that is
// down; nothing moves yet. With the driver Packet, the caller now opens the TAP, which is Device, and the NIC, and joins
// both with the switch, before Commit moves the host's addresses to it. Call Rollback to give up.
func (p *Plan) Begin(dir string, log *slog.Logger) (*Takeover, error) {
	t := &Takeover{dir: dir, log: log, stepper: p.stepper, plan: p, external: p.External, device: p.Device, mtu: p.MTU}
	if p.External.Bridge != "" {
		return t, nil
	}
	is, err := read(p.devices...)
	if err != nil {
		return nil, err
	}
	if d := difference(is, p.before.aged(is.Taken), p.devices, false); len(d) > 0 {
		return nil, fmt.Errorf("the host's network has changed since the plan (it would take `%s` to undo that): plan again", d[0].text)
	}
	place, err := here()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	if _, err := os.Lstat(journalPath(dir, p.External.Switch)); err == nil {
		return nil, fmt.Errorf("switch %q has a take-over in %s already: roll that back first", p.External.Switch, dir)
	}
	t.journal = &journal{
		Format: journalFormat, Place: place,
		External: p.External, Device: p.Device, Devices: p.devices, Before: p.before, After: p.after,
	}
	if err := t.write(); err != nil {
		return nil, err
	}
	var steps []step
	if w := p.after.find(p.Device); w != nil {
		steps = makeLink(*w)
	}
	if nic := p.before.find(p.External.NIC); !nic.Up { // whoever opens it wants it up
		steps = append(steps, bringUp(*nic, *p.after.find(nic.Name))...)
	}
	for _, s := range steps {
		if err := t.do(s); err != nil {
			return nil, errors.Join(err, t.Rollback())
		}
	}
	return t, nil
}

// write and remove the journal, as steps.
func (t *Takeover) write() error {
	return t.do(step{"write the journal", func() error { return t.journal.write(t.dir) }})
}

func (t *Takeover) remove() error {
	return t.do(step{"remove the journal", func() error { return t.journal.remove(t.dir) }})
}

// Commit moves what the plan says, and looks whether the host is as it should be and its gateways still
// answer. If not, everything has been put back when it returns the error. Otherwise the
// caller has the time keep to call Confirm; if it does not, everything is put back then, and expired, which may be nil, is
// called in a goroutine of its own. 0 is for a caller who need not be asked.
func (t *Takeover) Commit(ctx context.Context, keep time.Duration, expired func()) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.journal == nil {
		return nil // joined a bridge
	}
	gateways := reachable(ctx, t.plan.before.gateways(), patience/3)
	err := t.converge(t.journal.After, t.journal.Devices...)
	if err == nil {
		err = t.verify(ctx, gateways)
	}
	if err == nil && keep == 0 {
		err = t.confirm()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("take-over of %s: %w", t.journal.External.NIC, err), t.rollback())
	}
	if keep == 0 {
		return nil
	}
	t.timer = time.AfterFunc(keep, func() {
		if t.expire() && expired != nil {
			expired()
		}
	})
	return nil
}

// patience is how long a gateway has to answer.
const patience = 3 * time.Second

// verify tells what a take-over has broken.
func (t *Takeover) verify(ctx context.Context, before []gateway) error {
	if t.journal.External.Exclusive {
		return nil
	}
	for i := range before {
		if before[i].dev == t.journal.External.NIC {
			before[i].dev = t.device
		}
	}
	after := reachable(ctx, before, patience)
	for _, g := range before {
		if !slices.Contains(after, g) {
			return fmt.Errorf("gateway %v does not answer on %s any more", g.addr, g.dev)
		}
	}
	return ctx.Err()
}

// expire puts everything back when nobody has confirmed, and tells whether it has.
func (t *Takeover) expire() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.journal == nil || t.journal.Confirmed {
		return false
	}
	t.log.Warn("take-over not confirmed in time: rolling back", "switch", t.journal.External.Switch, "nic", t.journal.External.NIC)
	if err := t.rollback(); err != nil {
		t.log.Error("rollback", "switch", t.external.Switch, "err", err)
		return false
	}
	return true
}

// Confirm keeps the take-over: from now on it outlives a crash.
func (t *Takeover) Confirm() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.journal == nil {
		if t.external.Bridge != "" {
			return nil
		}
		return errors.New("the take-over has been rolled back")
	}
	if t.undoing {
		return errors.New("its rollback has begun, and failed: roll it back again")
	}
	return t.confirm()
}

func (t *Takeover) confirm() error {
	t.journal.Confirmed = true
	if err := t.write(); err != nil {
		t.journal.Confirmed = false // as a crash would find it
		return err
	}
	if t.timer != nil {
		t.timer.Stop()
	}
	return nil
}

// Rollback puts everything back as it was, and what has changed on the host's own adapter since
// the take-over moves to the NIC. It may be called at any time, and again if it fails.
func (t *Takeover) Rollback() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.rollback()
}

func (t *Takeover) rollback() error {
	if t.timer != nil {
		t.timer.Stop()
	}
	j := t.journal
	if j == nil {
		return nil
	}
	if j.Confirmed {
		is, err := read(j.Devices...)
		if err != nil {
			return err
		}
		j.Before, j.Confirmed = j.merged(is), false
		if err := t.write(); err != nil {
			// A disk that is full is no reason to keep the host off its network.
			t.log.Error("rolling back without a journal: if that is interrupted, it is not completed", "switch", t.external.Switch, "err", err)
		}
	}
	t.undoing = true
	if err := t.putBack(); err != nil {
		return fmt.Errorf("rollback of %s: %w", j.External.NIC, err)
	}
	t.journal, t.undoing = nil, false
	return nil
}

// putBack brings the state before about, and forgets the take-over.
func (t *Takeover) putBack() error {
	j := t.journal
	l, err := linkByName(j.External.NIC)
	if err != nil {
		return err
	}
	if l == nil {
		// Unplugged: there is nothing to put back to.
		t.log.Warn("the network adapter is gone: its addresses and routes are lost", "nic", j.External.NIC)
		j.Before = state{Taken: now()}
	}
	if err := t.converge(j.Before, j.Devices...); err != nil {
		return err
	}
	return t.remove()
}

// merged is the state to go back to: the one before the take-over, and what has come to the host's
// own adapter or gone from it since.
func (j *journal) merged(is state) state {
	back := j.Before.aged(is.Taken)
	if j.Device == "" {
		return back
	}
	if is.find(j.Device) == nil {
		return back // somebody has deleted it, and all that was on it
	}
	nic := j.External.NIC
	back.Objects = slices.DeleteFunc(back.Objects, func(o object) bool {
		m := o.moved(nic, j.Device)
		return !j.External.Exclusive && !is.has(&m) && !o.Advertised
	})
	at := map[string]int{}
	for i, o := range back.Objects {
		at[o.key()] = i
	}
	for _, o := range is.Objects {
		if !o.names(j.Device) || o.derived() || o.Advertised {
			continue
		}
		m := o.moved(j.Device, nic)
		if i, ok := at[m.key()]; ok {
			back.Objects[i] = m // with the lifetime it has now
		} else if o.Kind != address || !madeByRouter(&o) { // the kernel makes those of the NIC itself
			back.Objects = append(back.Objects, m)
		}
	}
	return back
}

// Recover reads the journals in dir after a start, rolls back each take-over that had not been confirmed, and removes what is left
// of address translation. It returns the take-overs that had been confirmed: they are in force. It has to run before
// anything else of this package.
func Recover(dir string, log *slog.Logger) ([]*Takeover, error) {
	return recoverAll(dir, log, stepper{})
}

func recoverAll(dir string, log *slog.Logger, p stepper) (kept []*Takeover, _ error) {
	errs := []error{recoverNAT(dir)}
	names, err := journals(dir, takeoverSuffix)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		t, err := resume(dir, name, log, p)
		if err == nil && t != nil && !t.journal.Confirmed {
			log.Warn("a take-over was not completed: rolling back", "switch", name, "nic", t.journal.External.NIC)
			err = t.Rollback()
		} else if err == nil && t != nil {
			kept = append(kept, t)
		}
		errs = append(errs, err)
	}
	return kept, errors.Join(errs...)
}

// Resume finds a switch's take-over by its journal in dir; nil if it has none.
func Resume(dir, switchName string, log *slog.Logger) (*Takeover, error) {
	return resume(dir, switchName, log, stepper{})
}

func resume(dir, switchName string, log *slog.Logger, p stepper) (*Takeover, error) {
	if _, err := os.Lstat(journalPath(dir, switchName)); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	j, err := readJournal(dir, switchName)
	if err != nil {
		return nil, err
	}
	if j == nil {
		old := &journal{External: External{Switch: switchName}}
		return nil, old.remove(dir)
	}
	t := &Takeover{dir: dir, log: log, stepper: p, journal: j, external: j.External, device: j.Device}
	if l := j.After.find(j.External.NIC); l != nil {
		t.mtu = l.MTU
	}
	if !j.Confirmed {
		return t, nil
	}
	is, err := read(j.Devices...)
	if err != nil {
		return nil, err
	}
	if j.Device != "" && is.find(j.Device) == nil || is.find(j.External.NIC) == nil {
		log.Warn("what a take-over has made is gone: rolling back", "switch", switchName, "device", j.Device, "nic", j.External.NIC)
		j.Confirmed = false
	}
	return t, nil
}

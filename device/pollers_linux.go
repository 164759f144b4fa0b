package device

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Pollers is poll mode: workers that look after transmit rings and never sleep while they have any, each on a processor of
// its own. A frame then meets a worker that is awake, at the price of a processor that is always busy; a driver
// never has to kick.
//
// A worker is a goroutine that is bound to a thread, which is bound to a processor. To Go's scheduler it is one goroutine that
// runs for ever. The rest of the process does not wait for it as long as GOMAXPROCS is larger than
// the number of workers, which NewPollers sees to: if there are fewer processors than that, it is the kernel that shares
// them out, and it lets a thread that wakes up for a message or a timer run at once. A stop of all goroutines, as
// the garbage collector needs now and then, interrupts the worker between two instructions, since it allocates
// nothing and is in no system call. Every 10 ms the scheduler takes it off its thread
// and, with nothing else to do, puts it back.
type Pollers struct {
	mu      sync.Mutex // guards what the workers are told, not what they do
	workers []*poller
}

// poller is one worker of Pollers.
type poller struct {
	rota atomic.Pointer[rota]
	wake chan struct{} // has room for one; the worker sleeps here while it has no queues
	gone chan struct{} // closed when the worker has ended
}

// rota is what a worker does until it is told something else. It does not change.
type rota struct {
	queues []Queue
	quit   bool
	begun  chan struct{} // closed by the worker when it is through with the one before
}

// NewPollers starts a worker on each of the given processors, which are numbered as Linux does. Rings that start are
// spread over them evenly. It raises GOMAXPROCS to one more than there are workers if it is
// lower, so a process makes one Pollers for all its adapters.
//
// An error says which processor this process cannot use.
func NewPollers(cpus []int) (*Pollers, error) {
	if len(cpus) == 0 {
		return nil, errors.New("poll mode needs at least one processor")
	}
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return nil, fmt.Errorf("sched_getaffinity: %w", err)
	}
	for i, cpu := range cpus {
		switch {
		case slices.Contains(cpus[:i], cpu):
			return nil, fmt.Errorf("processor %d is listed twice: one worker fills it", cpu)
		case cpu < 0 || !allowed.IsSet(cpu):
			return nil, fmt.Errorf("processor %d is none that this process may run on, which are %s: "+
				"name one of these, or bring it online, or let the process have it (taskset, AllowedCPUs, cpuset)", cpu, listCPUs(&allowed))
		}
	}
	if n := len(cpus) + 1; runtime.GOMAXPROCS(0) < n {
		runtime.GOMAXPROCS(n)
	}
	p := new(Pollers)
	for _, cpu := range cpus {
		w := &poller{wake: make(chan struct{}, 1), gone: make(chan struct{})}
		w.rota.Store(&rota{begun: make(chan struct{})})
		p.workers = append(p.workers, w)
		started := make(chan error)
		go w.run(cpu, started)
		if err := <-started; err != nil {
			p.Close()
			return nil, fmt.Errorf("processor %d: %w", cpu, err)
		}
	}
	return p, nil
}

// listCPUs writes a set as Linux does: "0-3,8".
func listCPUs(s *unix.CPUSet) string {
	var ranges []string
	for cpu := 0; cpu < len(s)*strconv.IntSize; cpu++ {
		if !s.IsSet(cpu) {
			continue
		}
		first := cpu
		for s.IsSet(cpu + 1) {
			cpu++
		}
		r := strconv.Itoa(first)
		if cpu > first {
			r += "-" + strconv.Itoa(cpu)
		}
		ranges = append(ranges, r)
	}
	return strings.Join(ranges, ",")
}

// Close ends the workers. No ring may be looked after any more.
func (p *Pollers) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.workers {
		w.tell(&rota{quit: true})
		<-w.gone
	}
	p.workers = nil
	return nil
}

// add has q looked after by the worker with the fewest queues.
func (p *Pollers) add(q Queue) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := slices.MinFunc(p.workers, func(a, b *poller) int { return len(a.rota.Load().queues) - len(b.rota.Load().queues) })
	w.tell(&rota{queues: append(slices.Clone(w.rota.Load().queues), q)})
}

// remove ends that. When it returns, no worker uses q.
func (p *Pollers) remove(q Queue) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.workers {
		if now := w.rota.Load().queues; slices.Contains(now, q) {
			w.tell(&rota{queues: slices.DeleteFunc(slices.Clone(now), func(o Queue) bool { return o == q })})
		}
	}
}

// tell gives the worker something else to do, and returns when it is through with what it did. It takes as long as
// a Pull of each queue, or, if the worker has ended, no time.
func (w *poller) tell(r *rota) {
	r.begun = make(chan struct{})
	w.rota.Store(r)
	select {
	case w.wake <- struct{}{}:
	default: // it has been woken before, and has not looked yet
	}
	select {
	case <-r.begun:
	case <-w.gone:
	}
}

// run is a worker. The thread ends with it, since nothing else may run on a thread that is bound to a processor.
func (w *poller) run(cpu int, started chan<- error) {
	defer close(w.gone)
	runtime.LockOSThread()
	var set unix.CPUSet
	set.Set(cpu)
	err := unix.SchedSetaffinity(0, &set)
	started <- err
	if err != nil {
		return
	}
	for {
		r := w.rota.Load()
		close(r.begun)
		if r.quit {
			return
		}
		for len(r.queues) == 0 && w.rota.Load() == r {
			<-w.wake
		}
		for w.rota.Load() == r {
			for _, q := range r.queues {
				q.Pull(pollBudget)
			}
		}
	}
}

// pollBudget bounds the frames of one Pull in poll mode, and with it how long a worker's other queues wait.
const pollBudget = txBudget

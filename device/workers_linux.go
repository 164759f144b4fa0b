package device

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"polder/device/vfiouser"
)

// Workers look after the transmit rings of synthetic adapters: they take what the guests' drivers make available, and send it. Rings
// are spread over them evenly, and stay where they are. There are two kinds.
//
// Adaptive workers (NewWorkers) sleep when there is nothing to do. A ring that was found empty is looked at for a while
// longer, if it had frames in quick succession before and a Spinners permits. Then its driver is asked to kick for the next frame, and
// the worker leaves the ring alone until it does; it sleeps when all its rings are left alone. So a ring that
// is idle costs nothing, neither by itself nor while others are busy, and one that is busy is
// served without a kick, as in the other kind.
//
// Pollers (NewPollers) are poll mode. They look at all their rings all the time, each on a processor of its own, which is always
// busy. No driver ever has to kick, and no frame waits for a worker to wake up.
//
// To Go's scheduler a worker is a goroutine that hardly ever yields. The rest of the process does not wait for it, because GOMAXPROCS
// is larger than the number of workers, which NewWorkers and NewPollers see to. If there are fewer processors than
// that, it is the kernel that shares them out, and it lets a thread that wakes up for a message or a timer run at once. The
// garbage collector interrupts a worker between two instructions, as it interrupts all others; it has nothing to be
// assisted with, since a worker allocates nothing. Every 10 ms the scheduler takes a poller off its thread and, with nothing
// else to do, puts it back.
type Workers struct {
	mu      sync.Mutex // guards what the workers are told, not what they do
	workers []*worker
}

// patience is how long an adaptive worker looks at an empty ring before it asks for a kick. A kick costs the guest a
// system call or an exit to the hypervisor, and waking a thread takes 10 to 50 µs. TCP between two guests that share a processor
// was 7 % slower with a quarter of it.
const patience = 200 * time.Microsecond

// kickTime is how long, about, a kick can remain unnoticed by a worker that is busy with other rings. Looking for kicks
// is a system call of a quarter of a microsecond.
const kickTime = 20 * time.Microsecond

// busyRounds is after how many rounds in which all rings had frames a worker looks at the clock.
const busyRounds = 16

// unkicked is how often a ring is looked at whose driver does not kick.
const unkicked = time.Millisecond

// worker is one of Workers.
type worker struct {
	poll     bool
	spinners *vfiouser.Spinners

	epoll int // of the kicks of its rings, and of wake
	wake  int // an eventfd: there is a new rota

	rota atomic.Pointer[rota]
	gone chan struct{} // closed when the worker has ended

	// The worker's own.
	start    time.Time // of its clock
	spinning bool      // spinners permitted it
	looked   time.Duration
	awake    []*txRing // those of its rings that it looks at
	events   [32]unix.EpollEvent
}

// rota is what a worker does until it is told something else. It does not change.
type rota struct {
	rings []*txRing
	quit  bool
	begun chan struct{} // closed by the worker when it is through with the one before
}

// watch is what a worker knows about a ring.
type watch struct {
	kick  int           // descriptor, or -1: the driver does not kick
	awake bool          // the worker looks at it, and the driver has not been asked to kick
	empty bool          // it was, the last time
	since time.Duration // by the worker's clock: when it became so
	quick bool          // the last time it was empty, that was not for long
}

// NewWorkers starts n adaptive workers, at least one. They look at empty rings as far as spinners permits, which may be nil: then
// they do not. A process needs no more workers than it has processors, less one for the guests.
func NewWorkers(n int, spinners *vfiouser.Spinners) (*Workers, error) {
	return newWorkers(max(n, 1), func(int) (*worker, func() error) {
		return &worker{spinners: spinners}, func() error { return nil }
	})
}

// NewPollers starts a worker on each of the given processors, which are numbered as Linux does, in poll mode. Without rings it
// sleeps. An error says which processor this process cannot use.
func NewPollers(cpus []int) (*Workers, error) {
	if len(cpus) == 0 {
		return nil, errors.New("poll mode needs at least one processor")
	}
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return nil, os.NewSyscallError("sched_getaffinity", err)
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
	return newWorkers(len(cpus), func(i int) (*worker, func() error) {
		return &worker{poll: true}, func() error {
			// The goroutine ends without a call of UnlockOSThread, and the thread with it: nothing else
			// may run on a thread that is bound to a processor.
			runtime.LockOSThread()
			var set unix.CPUSet
			set.Set(cpus[i])
			if err := unix.SchedSetaffinity(0, &set); err != nil {
				return fmt.Errorf("processor %d: %w", cpus[i], os.NewSyscallError("sched_setaffinity", err))
			}
			return nil
		}
	})
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

// newWorkers starts n workers. spec returns each, and what its goroutine is to do first.
func newWorkers(n int, spec func(i int) (w *worker, first func() error)) (*Workers, error) {
	if runtime.GOMAXPROCS(0) <= n {
		runtime.GOMAXPROCS(n + 1)
	}
	ws := new(Workers)
	for i := range n {
		w, first := spec(i)
		if err := w.open(); err != nil {
			ws.Close()
			return nil, err
		}
		started := make(chan error)
		go func() {
			defer w.close()
			err := first()
			started <- err
			if err == nil {
				w.run()
			}
		}()
		if err := <-started; err != nil {
			ws.Close()
			return nil, err
		}
		ws.workers = append(ws.workers, w)
	}
	return ws, nil
}

// Close ends the workers. They must not have rings any more.
func (ws *Workers) Close() error {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, w := range ws.workers {
		w.tell(&rota{quit: true})
		<-w.gone
	}
	ws.workers = nil
	return nil
}

// add has t looked after by the worker with the fewest rings, until remove. An error is about the descriptor of its kick.
func (ws *Workers) add(t *txRing) error {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	w := slices.MinFunc(ws.workers, func(a, b *worker) int { return len(a.rota.Load().rings) - len(b.rota.Load().rings) })
	t.watch = watch{kick: -1, awake: true, quick: true}
	if t.kick != nil {
		conn, err := t.kick.File().SyscallConn()
		if err != nil {
			return err
		}
		var ctlErr error
		err = conn.Control(func(fd uintptr) {
			t.watch.kick = int(fd)
			ctlErr = w.listen(t.watch.kick)
		})
		if err := errors.Join(err, ctlErr); err != nil {
			return fmt.Errorf("kick: %w", err)
		}
	}
	w.tell(&rota{rings: append(slices.Clone(w.rota.Load().rings), t)})
	return nil
}

// remove ends that. When it returns, no worker uses t.
func (ws *Workers) remove(t *txRing) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, w := range ws.workers {
		now := w.rota.Load().rings
		if !slices.Contains(now, t) {
			continue
		}
		if t.watch.kick >= 0 {
			unix.EpollCtl(w.epoll, unix.EPOLL_CTL_DEL, t.watch.kick, nil) // which is there, as add put it there
		}
		w.tell(&rota{rings: slices.DeleteFunc(slices.Clone(now), func(o *txRing) bool { return o == t })})
	}
}

// open makes the worker's descriptors.
func (w *worker) open() (err error) {
	w.gone, w.start = make(chan struct{}), time.Now()
	w.rota.Store(&rota{begun: make(chan struct{})})
	if w.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	if w.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		unix.Close(w.epoll)
		return os.NewSyscallError("eventfd", err)
	}
	if err = w.listen(w.wake); err != nil {
		unix.Close(w.epoll)
		unix.Close(w.wake)
	}
	return err
}

// close is the end of the worker.
func (w *worker) close() {
	unix.Close(w.epoll)
	unix.Close(w.wake)
	close(w.gone)
}

// listen has the worker wake up whenever something is written to an eventfd, whatever its counter was before.
func (w *worker) listen(fd int) error {
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(fd)}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(w.epoll, unix.EPOLL_CTL_ADD, fd, &event))
}

// tell gives the worker something else to do, and returns when it is through with what it did. That takes as long
// as a Pull of each ring.
func (w *worker) tell(r *rota) {
	r.begun = make(chan struct{})
	w.rota.Store(r)
	unix.Write(w.wake, one) // cannot fail: the counter has room for 2^64-2
	<-r.begun
}

// run is a worker.
func (w *worker) run() {
	for {
		r := w.rota.Load()
		close(r.begun)
		if r.quit {
			return
		}
		w.awake = w.awake[:0]
		for _, t := range r.rings {
			w.rouse(t, w.now())
		}
		w.serve(r)
		clear(w.awake) // of a ring that may be no more
	}
}

// now is the worker's clock.
func (w *worker) now() time.Duration { return time.Since(w.start) }

// serve looks after the rings of r until there is another rota.
func (w *worker) serve(r *rota) {
	for busy := 0; w.rota.Load() == r; {
		moved, empty := 0, false
		for _, t := range w.awake {
			n := t.Pull(txBudget)
			moved += n
			t.watch.note(n == 0)
			empty = empty || n == 0
		}
		switch {
		case w.poll && len(w.awake) > 0:
		case empty || len(w.awake) == 0 || busy >= busyRounds:
			w.rest(r, moved > 0)
			busy = 0
		default:
			busy++
		}
	}
	w.stopSpinning()
}

// note notes whether the ring was found empty.
func (a *watch) note(empty bool) {
	if empty && !a.empty {
		a.since = 0 // rest sets it
	}
	a.empty = empty
}

// rest leaves alone those rings that have been empty long enough, and looks for kicks of those that are. If no ring is left to
// look at, it sleeps.
func (w *worker) rest(r *rota, moved bool) {
	now := w.now()
	if moved {
		w.stopSpinning()
	} else if !w.spinning && len(w.awake) > 0 {
		w.spinning = w.spinners.Start()
	}
	w.awake = slices.DeleteFunc(w.awake, func(t *txRing) bool {
		a := &t.watch
		if !a.empty {
			return false
		}
		if a.since == 0 {
			a.since = now
		}
		if a.quick && (moved || w.spinning) && now-a.since < patience {
			return false
		}
		if t.Arm() {
			t.disarm()
			return false
		}
		a.awake = false
		return true
	})
	timeout := 0
	switch {
	case len(w.awake) == 0:
		w.stopSpinning()
		timeout = -1
		if slices.ContainsFunc(r.rings, func(t *txRing) bool { return t.watch.kick < 0 }) {
			timeout = int(unkicked.Milliseconds())
		}
	case len(w.awake) == len(r.rings) || now-w.looked < kickTime:
		return
	}
	n, err := unix.EpollWait(w.epoll, w.events[:], timeout)
	if err != nil && err != unix.EINTR {
		panic(fmt.Sprintf("device: epoll_wait: %v", err)) // of our own descriptors
	}
	now = w.now()
	w.looked = now
	for _, t := range r.rings {
		a := &t.watch
		kicked := a.kick < 0
		for i := range max(n, 0) {
			if int(w.events[i].Fd) == a.kick {
				kicked = true
				drain(a.kick)
			}
		}
		if kicked && !a.awake {
			w.rouse(t, now)
		}
	}
}

// drain makes room in an eventfd that was written to. Its other owner may have made it block, and may have read it: hence preadv2,
// which need not wait. A kernel that cannot do that (before 5.8) leaves the counter as it is, which is large.
func drain(fd int) {
	var count [8]byte
	unix.Preadv2(fd, [][]byte{count[:]}, -1, unix.RWF_NOWAIT)
}

// rouse has the worker look at a ring again.
func (w *worker) rouse(t *txRing, now time.Duration) {
	a := &t.watch
	if !a.awake {
		a.quick = now-a.since < patience
		a.awake = true
		t.disarm()
	}
	a.empty = false
	w.awake = append(w.awake, t)
}

// stopSpinning lets others look out in place of w.
func (w *worker) stopSpinning() {
	if w.spinning {
		w.spinners.Stop()
		w.spinning = false
	}
}

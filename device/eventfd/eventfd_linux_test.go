package eventfd

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func newFD(t testing.TB) *FD {
	t.Helper()
	f, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// dup returns another descriptor of f's eventfd, as a hypervisor would pass it.
func dup(t testing.TB, f *os.File) *os.File {
	t.Helper()
	conn, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	fd := -1
	if cerr := conn.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return os.NewFile(uintptr(fd), "peer")
}

// count takes the counter of f, 0 if nobody signalled.
func count(t *testing.T, f *os.File) uint64 {
	t.Helper()
	conn, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var b [8]byte
	if rerr := conn.Read(func(fd uintptr) bool {
		_, err = unix.Read(int(fd), b[:])
		return true
	}); rerr != nil || err != nil && err != unix.EAGAIN {
		t.Fatal(rerr, err)
	}
	return binary.NativeEndian.Uint64(b[:])
}

func TestSignalCounts(t *testing.T) {
	f := newFD(t)
	for range 3 {
		if err := f.Signal(); err != nil {
			t.Fatal(err)
		}
	}
	if n := count(t, f.File()); n != 3 {
		t.Errorf("counter is %d, want 3", n)
	}
}

func TestSignalOfAFullCounterDoesNotWait(t *testing.T) {
	f := newFD(t)
	limit := binary.NativeEndian.AppendUint64(nil, 1<<64-2)
	if _, err := f.File().Write(limit); err != nil {
		t.Fatal(err)
	}
	if err := f.Signal(); err != nil {
		t.Errorf("Signal = %v", err)
	}
	if n := count(t, f.File()); n != 1<<64-2 {
		t.Errorf("counter is %#x, want it at its limit", n)
	}
}

func TestWait(t *testing.T) {
	f := newFD(t)
	for range 100 {
		woken := make(chan error)
		go func() { woken <- f.Wait(t.Context()) }()
		if err := f.Signal(); err != nil {
			t.Fatal(err)
		}
		if err := <-woken; err != nil {
			t.Fatal(err)
		}
		if n := count(t, f.File()); n != 0 {
			t.Fatalf("counter is %d after Wait, want 0", n)
		}
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	f := newFD(t)
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		woken := make(chan error)
		go func() { woken <- f.Wait(ctx) }()
		cancel()
		if err := <-woken; err != context.Canceled {
			t.Fatalf("Wait = %v, want %v", err, context.Canceled)
		}
	}
	if err := f.Signal(); err != nil {
		t.Fatal(err)
	}
	if err := f.Wait(t.Context()); err != nil {
		t.Errorf("Wait after a cancelled one: %v", err)
	}
}

func TestDrain(t *testing.T) {
	f := newFD(t)
	if err := f.Drain(); err != nil {
		t.Errorf("of an empty counter: %v", err)
	}
	if err := f.Signal(); err != nil {
		t.Fatal(err)
	}
	if err := f.Drain(); err != nil {
		t.Error(err)
	}
	if n := count(t, f.File()); n != 0 {
		t.Errorf("counter is %d, want 0", n)
	}
}

func TestClose(t *testing.T) {
	f := newFD(t)
	woken := make(chan error)
	go func() { woken <- f.Wait(t.Context()) }()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-woken; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Wait = %v, want %v", err, os.ErrClosed)
	}
	for name, err := range map[string]error{
		"Signal": f.Signal(),
		"Wait":   f.Wait(t.Context()),
		"Drain":  f.Drain(),
		"Close":  f.Close(),
	} {
		if err == nil {
			t.Errorf("%s of a closed eventfd succeeded", name)
		}
	}
}

// Senders that race with Close must never write to a descriptor that got the same number.
func TestSignalRacesWithClose(t *testing.T) {
	for range 50 {
		f := newFD(t)
		var senders sync.WaitGroup
		for range 3 {
			senders.Go(func() {
				for f.Signal() == nil {
				}
			})
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		senders.Wait()
	}
}

func TestFromFile(t *testing.T) {
	peer := newFD(t)
	f, err := FromFile(dup(t, peer.File()))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Signal(); err != nil {
		t.Fatal(err)
	}
	if err := peer.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := peer.Signal(); err != nil {
		t.Fatal(err)
	}
	if err := f.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestFromFileMakesItNonBlocking(t *testing.T) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f, err := FromFile(os.NewFile(uintptr(fd), "peer"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Drain(); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	woken := make(chan error)
	go func() { woken <- f.Wait(ctx) }()
	cancel()
	if err := <-woken; err != context.Canceled {
		t.Errorf("Wait = %v, want %v", err, context.Canceled)
	}
}

func TestFromFileRefusesOtherDescriptors(t *testing.T) {
	regular, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for name, file := range map[string]*os.File{"regular file": regular, "pipe": w} {
		if _, err := FromFile(file); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%s: %v, want EINVAL", name, err)
		}
		if err := file.Close(); err == nil {
			t.Errorf("%s: refused but not closed", name)
		}
	}
	if _, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the pipe's other end reads %v, want EOF: a copy was kept", err)
	}
	if _, err := FromFile(regular); err == nil {
		t.Error("a closed file was accepted")
	}
}

func TestSignalDoesNotAllocate(t *testing.T) {
	f := newFD(t)
	if n := testing.AllocsPerRun(100, func() {
		if err := f.Signal(); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

func BenchmarkSignal(b *testing.B) {
	f := newFD(b)
	b.ReportAllocs()
	for b.Loop() {
		if err := f.Signal(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSignalWait(b *testing.B) {
	f := newFD(b)
	b.ReportAllocs()
	for b.Loop() {
		if err := f.Signal(); err != nil {
			b.Fatal(err)
		}
		if err := f.Wait(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// Whoever shares an eventfd can make it blocking and fill it. Signal comes back all the same.
func TestSignalCannotBeMadeToWait(t *testing.T) {
	f := newFD(t)
	peer := int(dup(t, f.File()).Fd())
	if err := unix.SetNonblock(peer, false); err != nil { // of the description that both share
		t.Fatal(err)
	}
	full := binary.NativeEndian.AppendUint64(nil, 1<<64-2)
	if _, err := unix.Write(peer, full); err != nil {
		t.Fatal(err)
	}
	if err := f.Signal(); !errors.Is(err, ErrStuck) {
		t.Errorf("Signal: %v, want %v", err, ErrStuck)
	}
	if err := f.Signal(); err != nil { // there is room again
		t.Errorf("Signal, after the counter was read: %v", err)
	}
}

// A process that was stopped in the middle of a Signal does not blame the other side, and loses no signal. It does not
// forgive for ever.
func TestSignalOfAStoppedProcess(t *testing.T) {
	f := newFD(t)
	write, stopped := f.write, 0
	f.write = func(fd uintptr) bool {
		done := write(fd)
		if stopped > 0 {
			stopped--
			f.rescue.Reset(0)
			for len(f.rescued) == 0 {
				runtime.Gosched()
			}
		}
		return done
	}
	for range maxLate {
		stopped = 1
		if err := f.Signal(); err != nil {
			t.Fatal(err)
		}
		if err := f.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	stopped = 1
	if err := f.Signal(); !errors.Is(err, ErrStuck) {
		t.Errorf("Signal: %v, want %v", err, ErrStuck)
	}
}

// watched reports whether a poll set of this process has f's descriptor in it.
func watched(t *testing.T, f *FD) bool {
	t.Helper()
	fd := -1
	f.conn.Control(func(n uintptr) { fd = int(n) })
	infos, err := filepath.Glob("/proc/self/fdinfo/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range infos {
		text, err := os.ReadFile(info)
		if err != nil {
			continue // closed since
		}
		for line := range strings.Lines(string(text)) { // of a poll set: "tfd: 5 events: …"
			if w := strings.Fields(line); len(w) > 1 && w[0] == "tfd:" && w[1] == strconv.Itoa(fd) {
				return true
			}
		}
	}
	return false
}

// A descriptor on which nobody waits wakes nobody up, and is signalled like any other.
func TestSignalOnly(t *testing.T) {
	peer := newFD(t)
	f, err := SignalOnly(dup(t, peer.File()))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if watched(t, f) || !watched(t, peer) {
		t.Errorf("watched: %t, and %t of one that can be waited for", watched(t, f), watched(t, peer))
	}
	if f.blocks() {
		t.Error("it is left blocking")
	}
	for range 3 {
		if err := f.Signal(); err != nil {
			t.Fatal(err)
		}
	}
	if n := count(t, peer.File()); n != 3 {
		t.Errorf("counter is %d after three signals", n)
	}
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := SignalOnly(file); !errors.Is(err, unix.EINVAL) {
		t.Errorf("SignalOnly of another file: %v, want EINVAL", err)
	}
}

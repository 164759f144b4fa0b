package guestmem

import (
	"errors"
	"runtime"
	"sync"
	"testing"
)

func TestTruncatedFileBecomesErrFault(t *testing.T) {
	ram := memfd(t, 4*page)
	m := newMap(t, Region{Size: 4 * page, File: ram, Read: true, Write: true})
	if err := ram.Truncate(page); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2*page)
	for _, test := range []struct {
		name string
		f    func()
	}{
		{"read by copy", func() { _ = m.Read(page, buf) }},
		{"write by copy", func() { _ = m.Write(page, buf) }},
		{"copy that starts in what is left", func() { _ = m.Read(page/2, buf) }},
		{"load", func() { buf[0] = m.Window(2*page, 1, false)[0] }},
		{"store", func() { m.Window(2*page, 1, true)[0] = 1 }},
	} {
		var mu sync.Mutex
		err := Guard(func() {
			mu.Lock()
			defer mu.Unlock()
			test.f()
		})
		if !errors.Is(err, ErrFault) {
			t.Errorf("%s: %v, want %v", test.name, err, ErrFault)
		}
		if !mu.TryLock() {
			t.Errorf("%s: a lock released by defer is still held", test.name)
		}
	}
	if err := Guard(func() { _ = m.Read(0, buf[:page]) }); err != nil {
		t.Errorf("what is left of the file: %v", err)
	}
}

func TestGuardPassesOtherPanics(t *testing.T) {
	bug := errors.New("bug")
	catch := func(f func()) (p any) {
		defer func() { p = recover() }()
		_ = Guard(f)
		return nil
	}
	if p := catch(func() { panic(bug) }); p != bug {
		t.Errorf("recovered %v, want the panic of the function", p)
	}
	var none *int
	if _, ok := catch(func() { *none = 1 }).(runtime.Error); !ok {
		t.Error("a nil dereference did not pass through")
	}
	var empty []byte
	if _, ok := catch(func() { empty[len(empty)] = 1 }).(runtime.Error); !ok {
		t.Error("an index out of range did not pass through")
	}
}

func TestGuardsNest(t *testing.T) {
	ram := memfd(t, page)
	m := newMap(t, Region{Size: page, File: ram, Read: true})
	if err := ram.Truncate(0); err != nil {
		t.Fatal(err)
	}
	touch := func() { _ = m.Read(0, make([]byte, 1)) }
	var inner error
	outer := Guard(func() {
		inner = Guard(touch)
		touch() // the outer guard must still be in force
	})
	if !errors.Is(inner, ErrFault) || !errors.Is(outer, ErrFault) {
		t.Errorf("inner %v, outer %v, want both %v", inner, outer, ErrFault)
	}
}

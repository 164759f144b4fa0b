package guestmem

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
)

// ErrFault reports that guest memory went away while it was in use: the hypervisor
// truncated the file behind a mapping.
var ErrFault = errors.New("guest memory fault")

// memoryFault is what the runtime panics with when SetPanicOnFault is on and an
// address that is mapped or plausible cannot be accessed. A nil dereference has no Addr.
type memoryFault interface {
	runtime.Error
	Addr() uintptr
}

// Guard calls f and returns nil, or an error that is [ErrFault] if f was
// cut short by a memory fault. Any other panic of f passes through. Locks that f holds must
// be released by defer, as f does not return after a fault.
//
// Guards nest: a fault ends the innermost one. Guard does not allocate unless there is a fault.
func Guard(f func()) (err error) {
	before := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(before)
		switch p := recover().(type) {
		case nil:
		case memoryFault:
			err = fmt.Errorf("%w at address %#x", ErrFault, p.Addr())
		default:
			panic(p)
		}
	}()
	f()
	return nil
}

// Package privilege gives up what the daemon does not need any more once it serves: its guests and their
// hypervisors are not to be trusted, and what a process cannot do nobody can make it do.
package privilege

import (
	"errors"
	"fmt"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Admin is the capability to change the host's network: TAP devices, bridges, addresses.
const Admin = unix.CAP_NET_ADMIN

// Network is Admin, and the capability to open packet sockets.
var Network = []int{Admin, unix.CAP_NET_RAW}

// Chown is the capability to give a file to a group that the process is not a member of.
const Chown = unix.CAP_CHOWN

// Override is the capability to open what its owner keeps for itself, such as a hypervisor's socket.
const Override = unix.CAP_DAC_OVERRIDE

// lastCap is the highest capability that Linux has; a kernel that is older knows fewer.
const lastCap = unix.CAP_LAST_CAP

// ErrCgo is Limit's in a program that was built with cgo.
var ErrCgo = errors.New("a program that was built with cgo cannot give up privileges: build it with CGO_ENABLED=0")

// Limit leaves the process, all its threads, no capabilities but those of keep that it has, for good: nothing that it executes
// gets more either (capabilities(7), no_new_privs in prctl(2)). A program that was built with cgo cannot do it for
// threads that Go has not made: then the error is ErrCgo, and nothing has changed.
func Limit(keep ...int) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	if err := prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil {
		if errors.Is(err, syscall.ENOTSUP) {
			return ErrCgo
		}
		return fmt.Errorf("no_new_privs: %w", err)
	}
	if err := prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0); err != nil {
		return fmt.Errorf("ambient capabilities: %w", err)
	}
	if has(sets, unix.CAP_SETPCAP) {
		for c := 0; c <= lastCap; c++ {
			if slices.Contains(keep, c) {
				continue
			}
			if err := prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0); err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: the kernel does not know it
				return fmt.Errorf("bounding set: %w", err)
			}
		}
	}
	for i := range sets {
		var mask uint32
		for _, c := range keep {
			if c/32 == i {
				mask |= 1 << (c % 32)
			}
		}
		sets[i].Permitted &= mask
		sets[i].Effective &= mask
		sets[i].Inheritable = 0
	}
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&sets[0])), 0); errno != 0 {
		return fmt.Errorf("capset: %w", errno)
	}
	return nil
}

// Have tells whether all of the capabilities are in effect.
func Have(caps ...int) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	return unix.Capget(&header, &sets[0]) == nil && !slices.ContainsFunc(caps, func(c int) bool { return !has(sets, c) })
}

// has tells whether a capability is in effect.
func has(sets [2]unix.CapUserData, c int) bool { return sets[c/32].Effective>>(c%32)&1 != 0 }

// prctl does it for every thread.
func prctl(option, arg2, arg3 uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, option, arg2, arg3, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

package vfiouser

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// receiver reads a byte stream that descriptors travel with. Unlike unix.Recvmsg, which allocates the
// address of a sender that has none, it does not allocate; it makes one for each register access.
type receiver struct {
	msg unix.Msghdr
	iov unix.Iovec
	oob [maxFDs*4 + unix.SizeofCmsghdr]byte
}

// recvmsg reads up to len(p) bytes, and at least one, from fd. With flags of MSG_DONTWAIT it does not wait for
// them: EAGAIN says that there are none. control holds the descriptors sent with
// them, if any; it is valid until the next call. truncated means there were more than
// maxFDs. n is 0 at the end of the stream.
func (r *receiver) recvmsg(fd int, p []byte, flags int) (n int, control []byte, truncated bool, err error) {
	r.iov.Base = &p[0]
	r.iov.SetLen(len(p))
	r.msg = unix.Msghdr{Iov: &r.iov, Control: &r.oob[0]}
	r.msg.SetIovlen(1)
	r.msg.SetControllen(len(r.oob))
	for {
		var n uintptr
		var errno unix.Errno
		if flags&unix.MSG_DONTWAIT != 0 { // the scheduler need not know of a call that does not wait
			n, _, errno = unix.RawSyscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&r.msg)), uintptr(flags|unix.MSG_CMSG_CLOEXEC))
		} else {
			n, _, errno = unix.Syscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&r.msg)), uintptr(flags|unix.MSG_CMSG_CLOEXEC))
		}
		switch errno {
		case 0:
			return int(n), r.oob[:r.msg.Controllen], r.msg.Flags&unix.MSG_CTRUNC != 0, nil
		case unix.EINTR:
		default:
			return 0, nil, false, errno
		}
	}
}

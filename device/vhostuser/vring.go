package vhostuser

import (
	"encoding/binary"
	"os"

	"golang.org/x/sys/unix"
)

// vring is what the front end said of a ring.
type vring struct {
	num  uint32 // 0: not said yet
	base uint32
	addr vringAddr
	// addressed says that addr was set, kicked that SET_VRING_KICK came since the ring was last stopped.
	addressed, kicked bool

	kick, call, err int // or -1

	enabled bool // as SET_VRING_ENABLE says; see conn.on
	running bool // between StartVring and StopVring
}

// vringAddr is where a ring is, in user addresses.
type vringAddr struct {
	desc, used, avail uint64
	usedLog           UsedLog
}

// ring returns the ring of a number in a message, which is compared before it is narrowed.
func (c *conn) ring(index uint64) (int, *vring, error) {
	if index >= uint64(len(c.rings)) {
		return 0, nil, c.h.malformed("ring %d of %d", index, len(c.rings))
	}
	return int(index), &c.rings[index], nil
}

// vringState takes a ring and a number from a payload.
func (c *conn) vringState(body []byte) (i int, v *vring, num uint32, err error) {
	i, v, err = c.ring(uint64(binary.LittleEndian.Uint32(body)))
	return i, v, binary.LittleEndian.Uint32(body[4:]), err
}

// on reports whether a ring that runs is enabled (specification, "Ring states").
func (c *conn) on(i int) bool { return c.features&featureProtocol == 0 || c.rings[i].enabled }

// tellEnabled tells the device that a ring that runs was enabled or disabled, if it was.
func (c *conn) tellEnabled(i int, was bool) error {
	if on := c.on(i); c.rings[i].running && on != was {
		return c.dev.SetVringEnable(i, on)
	}
	return nil
}

func (c *conn) setVringNum(body []byte) ([]byte, error) {
	i, v, num, err := c.vringState(body)
	switch {
	case err != nil:
		return nil, err
	case num == 0 || num > maxRing:
		return nil, c.h.malformed("ring %d: size %d is not between 1 and %d", i, num, maxRing)
	}
	if err := c.unsettle(i); err != nil {
		return nil, err
	}
	v.num = num
	return nil, c.settle(i)
}

func (c *conn) setVringBase(body []byte) ([]byte, error) {
	i, v, base, err := c.vringState(body)
	if err != nil {
		return nil, err
	}
	if err := c.unsettle(i); err != nil {
		return nil, err
	}
	v.base = base
	return nil, nil
}

// setVringAddr serves SET_VRING_ADDR. For a ring that runs, QEMU sends it to start and stop logging, with the
// addresses that the ring has.
func (c *conn) setVringAddr(body []byte) ([]byte, error) {
	i, v, flags, err := c.vringState(body)
	if err != nil {
		return nil, err
	}
	a := vringAddr{
		desc:  binary.LittleEndian.Uint64(body[8:]),
		used:  binary.LittleEndian.Uint64(body[16:]),
		avail: binary.LittleEndian.Uint64(body[24:]),
	}
	switch flags {
	case 0: // the address of the log means nothing
	case 1: // VHOST_VRING_F_LOG
		a.usedLog = UsedLog{On: true, Addr: binary.LittleEndian.Uint64(body[32:])}
		if _, ok := last(a.usedLog.Addr, usedSize(maxRing)); !ok {
			return nil, c.h.malformed("ring %d: log at %#x wraps around", i, a.usedLog.Addr)
		}
	default:
		return nil, c.h.malformed("ring %d: flags %#x", i, flags)
	}
	old := v.addr
	if v.running && old.desc == a.desc && old.used == a.used && old.avail == a.avail {
		v.addr = a
		if a.usedLog == old.usedLog {
			return nil, nil
		}
		return nil, c.dev.SetVringLog(i, a.usedLog)
	}
	if err := c.unsettle(i); err != nil {
		return nil, err
	}
	v.addr, v.addressed = a, true
	return nil, c.settle(i)
}

// getVringBase serves GET_VRING_BASE: the ring stops, and the reply says where.
func (c *conn) getVringBase(body []byte) ([]byte, error) {
	i, v, _, err := c.vringState(body)
	if err != nil {
		return nil, err
	}
	if err := c.halt(i); err != nil {
		return nil, err
	}
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, uint32(i)), v.base), nil
}

func (c *conn) setVringEnable(body []byte) ([]byte, error) {
	i, v, on, err := c.vringState(body)
	switch {
	case err != nil:
		return nil, err
	case on > 1:
		return nil, c.h.malformed("ring %d: %d is neither on nor off", i, on)
	}
	was := c.on(i)
	v.enabled = on == 1
	return nil, c.tellEnabled(i, was)
}

// doorbell takes a ring and a descriptor from a message whose payload has the number of the ring in bits 0 to 7, and
// bit 8 set if there is no descriptor. Then, fd is -1. Besides an eventfd, which has no type of file, it may be of type also.
func (c *conn) doorbell(body []byte, also uint32) (i int, v *vring, fd int, err error) {
	const noFD = 1 << 8
	n := binary.LittleEndian.Uint64(body)
	i, v, err = c.ring(n &^ noFD)
	switch {
	case err != nil:
		return 0, nil, -1, err
	case (n&noFD != 0) != (len(c.fds) == 0):
		return 0, nil, -1, c.h.malformed("%#x with %d descriptors", n, len(c.fds))
	case len(c.fds) == 0:
		return i, v, -1, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(c.fds[0], &st); err != nil {
		return 0, nil, -1, os.NewSyscallError("fstat", err)
	}
	if kind := st.Mode & unix.S_IFMT; kind != 0 && kind != also {
		return 0, nil, -1, c.h.malformed("ring %d: a file of mode %#o is no doorbell", i, st.Mode)
	}
	return i, v, c.take(), nil
}

// setVringKick serves SET_VRING_KICK, which starts the ring. One that runs starts again with the new kick.
func (c *conn) setVringKick(body []byte) ([]byte, error) {
	i, v, fd, err := c.doorbell(body, 0)
	if err != nil {
		return nil, err
	}
	err = c.halt(i)
	replace(&v.kick, fd)
	if err != nil {
		return nil, err
	}
	v.kicked = true
	return nil, c.settle(i)
}

func (c *conn) setVringCall(body []byte) ([]byte, error) {
	i, v, fd, err := c.doorbell(body, unix.S_IFSOCK)
	if err != nil {
		return nil, err
	}
	replace(&v.call, fd)
	if !v.running {
		return nil, nil
	}
	call, err := dup(v.call, "call")
	if err != nil {
		return nil, err
	}
	return nil, c.dev.SetVringCall(i, call)
}

// setVringErr serves SET_VRING_ERR. It counts from the next start of the ring on; QEMU sends it only when it connects.
func (c *conn) setVringErr(body []byte) ([]byte, error) {
	_, v, fd, err := c.doorbell(body, 0)
	if err == nil {
		replace(&v.err, fd)
	}
	return nil, err
}

// dup returns another descriptor for fd, or nil if that is -1.
func dup(fd int, name string) (*os.File, error) {
	if fd < 0 {
		return nil, nil
	}
	fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// settle starts a ring if that is due: it was kicked, all is known of it, and there is memory.
func (c *conn) settle(i int) error {
	v := &c.rings[i]
	if v.running || !v.kicked || v.num == 0 || !v.addressed || len(c.mem) == 0 {
		return nil
	}
	return c.start(i)
}

// usedSize returns how many bytes the used ring of a split ring has.
func usedSize(num uint64) uint64 { return 6 + 8*num }

// start starts a ring, for which the device must be ours. The sizes and alignments of its parts are those of virtio 1.3, 2.7 and 2.8.
func (c *conn) start(i int) error {
	v := &c.rings[i]
	num := uint64(v.num)
	availSize, usedSize := 6+2*num, usedSize(num)
	availAlign := uint64(2)
	if c.features&featurePacked != 0 {
		availSize, usedSize, availAlign = 4, 4, 4
	} else if num&(num-1) != 0 {
		return c.h.malformed("ring %d: size %d is not a power of two", i, num)
	} else if v.base > 0xffff {
		return c.h.malformed("ring %d: base %#x has more than 16 bits", i, v.base)
	}
	cfg := VringConfig{Index: i, Num: uint16(v.num), Base: v.base, Enabled: c.on(i), UsedLog: v.addr.usedLog}
	var err error
	if cfg.Desc, err = c.translate(i, "descriptors", v.addr.desc, 16*num, 16); err != nil {
		return err
	}
	if cfg.Avail, err = c.translate(i, "available ring", v.addr.avail, availSize, availAlign); err != nil {
		return err
	}
	if cfg.Used, err = c.translate(i, "used ring", v.addr.used, usedSize, 4); err != nil {
		return err
	}
	if err := c.acquire(); err != nil {
		return err
	}
	for _, bell := range []struct {
		file **os.File
		fd   int
		name string
	}{{&cfg.Kick, v.kick, "kick"}, {&cfg.Call, v.call, "call"}, {&cfg.Err, v.err, "err"}} {
		if *bell.file, err = dup(bell.fd, bell.name); err != nil {
			for _, f := range []*os.File{cfg.Kick, cfg.Call, cfg.Err} {
				f.Close() // which a nil file refuses, harmlessly
			}
			return err
		}
	}
	v.running = true
	return c.dev.StartVring(cfg)
}

// stop stops a ring that runs, so that start lets it go on.
func (c *conn) stop(i int) error {
	v := &c.rings[i]
	v.running = false
	base, err := c.dev.StopVring(i)
	if err == nil {
		v.base = base
	}
	return err
}

// unsettle stops a ring that is about to be configured anew, if it runs.
func (c *conn) unsettle(i int) error {
	if !c.rings[i].running {
		return nil
	}
	return c.halt(i)
}

// halt makes sure that a ring is stopped until SET_VRING_KICK comes again.
func (c *conn) halt(i int) error {
	v := &c.rings[i]
	replace(&v.kick, -1)
	v.kicked = false
	if !v.running {
		return nil
	}
	return c.stop(i)
}

// haltAll halts all rings.
func (c *conn) haltAll() error {
	for i := range c.rings {
		if err := c.halt(i); err != nil {
			return err
		}
	}
	return nil
}

package guestmem

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// The most that one Map makes this process hold. The kernel's limit is 65530 mappings and, on most
// machines, 128 TiB of addresses, for all guests and the Go heap together.
const (
	maxRegions = 65535           // the default max_dma_maps of vfio-user
	maxFiles   = 256             // mappings; a PC has at most 256 memory slots
	maxBytes   = uint64(1) << 40 // in all mappings together
)

// grace is how long a mapping outlives its last region, so that taking RAM away and giving
// it back, which is one transaction of the hypervisor, does not map gigabytes again. Memory
// that was really unplugged is not held longer than this.
const grace = 2 * time.Second

// ErrUnmapped reports an access to an address that no region shows, that is not
// reachable by DMA, or that does not permit this kind of access.
var ErrUnmapped = errors.New("guest memory not mapped")

// Map is the memory of one guest. Its zero value is an empty map.
//
// Window, Read and Write may be called concurrently. Map, Unmap and Close may not be called
// concurrently with them nor with each other.
type Map struct {
	spans []span        // sorted by address, disjoint
	hit   atomic.Uint32 // index in spans of the last successful lookup: a hint

	mu       sync.Mutex // guards mappings against the timers that end the grace of one
	mappings []*mapping
}

// mapping is one file mapped from its beginning to its end.
type mapping struct {
	dev, ino uint64
	writable bool // mapped for reading and writing; the file was open for both
	mem      []byte

	refs int         // spans that point into mem; guarded by Map.mu
	idle *time.Timer // ends the grace; set and running when refs is 0
}

// Map adds a region. A file that is mapped already is not mapped again.
//
// An error leaves the map as it was, and wraps the errno that tells its
// kind: EINVAL for impossible numbers or a file too short, EEXIST if the region overlaps another,
// EACCES if the file is not open for what the region permits, ENODEV if it is not memory,
// ENOSPC if the guest has more regions, files or bytes than one guest may have, or what mmap said.
func (m *Map) Map(r Region) error {
	if err := r.check(); err != nil {
		return err
	}
	if len(m.spans) >= maxRegions {
		return fmt.Errorf("region %#x+%#x is one more than %d: %w", r.GPA, r.Size, maxRegions, unix.ENOSPC)
	}
	i := m.search(r.GPA)
	if i < len(m.spans) && m.spans[i].first <= r.last() {
		s := &m.spans[i]
		return fmt.Errorf("region %#x+%#x overlaps the one from %#x to %#x: %w", r.GPA, r.Size, s.first, s.last, unix.EEXIST)
	}

	s := span{first: r.GPA, last: r.last(), read: r.Read, write: r.Write}
	if r.File != nil {
		mp, err := m.acquire(r)
		if err != nil {
			return fmt.Errorf("region %#x+%#x at offset %#x of its file: %w", r.GPA, r.Size, r.Offset, err)
		}
		end := r.Offset + r.Size
		s.mapping = mp
		s.mem = mp.mem[r.Offset:end:end]
	}
	m.spans = slices.Insert(m.spans, i, s)
	return nil
}

// Unmap removes the regions that lie within size bytes from gpa on; Unmap(0, 0) removes all.
// Slices into them must not be used any more. An error changes nothing: it wraps EINVAL if the range
// wraps around or cuts a region in two, ENOENT if there is no region in it.
func (m *Map) Unmap(gpa, size uint64) error {
	if gpa == 0 && size == 0 {
		m.remove(0, len(m.spans))
		return nil
	}
	last := gpa + (size - 1)
	if size == 0 || last < gpa {
		return fmt.Errorf("unmap %#x+%#x: empty or wrapping range: %w", gpa, size, unix.EINVAL)
	}
	i := m.search(gpa)
	j := i
	for ; j < len(m.spans) && m.spans[j].first <= last; j++ {
		if s := &m.spans[j]; s.first < gpa || s.last > last {
			return fmt.Errorf("unmap %#x+%#x cuts the region from %#x to %#x: %w", gpa, size, s.first, s.last, unix.EINVAL)
		}
	}
	if i == j {
		return fmt.Errorf("unmap %#x+%#x: no such region: %w", gpa, size, unix.ENOENT)
	}
	m.remove(i, j)
	return nil
}

// Close removes every region and unmaps every file at once, without grace. The Map is then
// empty and may be used again.
func (m *Map) Close() error {
	m.remove(0, len(m.spans))
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for _, mp := range m.mappings {
		mp.idle.Stop()
		errs = append(errs, unix.Munmap(mp.mem))
	}
	m.mappings = nil
	return errors.Join(errs...)
}

// Window returns the n bytes of guest memory at gpa themselves, or nil unless n is positive and
// they lie in one region that is reachable by DMA and permits the access: writing if
// write, otherwise reading. The slice is valid until the region is unmapped, its
// content changes at any time, and using it belongs inside [Guard].
func (m *Map) Window(gpa uint64, n int, write bool) []byte {
	s := m.lookup(gpa)
	if s == nil || !s.may(write) || n <= 0 {
		return nil
	}
	off := gpa - s.first
	if uint64(n) > uint64(len(s.mem))-off {
		return nil
	}
	return s.mem[off : off+uint64(n) : off+uint64(n)]
}

// Read copies guest memory from gpa on into p, across regions if need be. An error is [ErrUnmapped],
// and says nothing about the content of p. Like any use of guest memory it belongs inside [Guard].
func (m *Map) Read(gpa uint64, p []byte) error {
	for addr := gpa; len(p) > 0; {
		part, err := m.rest(addr, len(p), false)
		if err != nil {
			return err
		}
		n := copy(p, part)
		p, addr = p[n:], addr+uint64(n)
	}
	return nil
}

// Write copies p to guest memory from gpa on, across regions if need be. An error is [ErrUnmapped];
// the bytes before the address that it names have then been written. Like any use of guest
// memory it belongs inside [Guard].
func (m *Map) Write(gpa uint64, p []byte) error {
	for addr := gpa; len(p) > 0; {
		part, err := m.rest(addr, len(p), true)
		if err != nil {
			return err
		}
		n := copy(part, p)
		p, addr = p[n:], addr+uint64(n)
	}
	return nil
}

// rest returns up to n bytes of memory from gpa to the end of its region.
func (m *Map) rest(gpa uint64, n int, write bool) ([]byte, error) {
	s := m.lookup(gpa)
	if s == nil || !s.may(write) {
		return nil, fmt.Errorf("%w at %#x", ErrUnmapped, gpa)
	}
	part := s.mem[gpa-s.first:]
	return part[:min(n, len(part))], nil
}

// lookup returns the span that holds gpa, or nil.
func (m *Map) lookup(gpa uint64) *span {
	if i := int(m.hit.Load()); i < len(m.spans) {
		if s := &m.spans[i]; s.first <= gpa && gpa <= s.last {
			return s
		}
	}
	i := m.search(gpa)
	if i == len(m.spans) || gpa < m.spans[i].first {
		return nil
	}
	m.hit.Store(uint32(i))
	return &m.spans[i]
}

// search returns the index of the first span that ends at gpa or after it.
func (m *Map) search(gpa uint64) int {
	lo, hi := 0, len(m.spans) // by hand: half the time of slices.BinarySearchFunc for four spans
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		if m.spans[mid].last < gpa {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

// remove takes spans i to j-1 out and starts the grace of mappings they were the last to use.
func (m *Map) remove(i, j int) {
	for _, s := range m.spans[i:j] {
		if s.mapping != nil {
			m.release(s.mapping)
		}
	}
	m.spans = slices.Delete(m.spans, i, j)
}

// acquire returns a mapping that shows the file of r as far as r needs it, and counts one use of it.
func (m *Map) acquire(r Region) (*mapping, error) {
	f, err := inspect(r.File)
	if err != nil {
		return nil, err
	}
	switch {
	case r.Offset+r.Size > f.size:
		return nil, fmt.Errorf("the file has only %#x bytes: %w", f.size, unix.EINVAL)
	case !f.readable || r.Write && !f.writable:
		return nil, fmt.Errorf("the file is not open for the access that is permitted: %w", unix.EACCES)
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	total := f.size
	for _, mp := range m.mappings {
		if mp.dev == f.dev && mp.ino == f.ino && mp.writable == f.writable && r.Offset+r.Size <= uint64(len(mp.mem)) {
			if mp.refs == 0 {
				mp.idle.Stop()
			}
			mp.refs++
			return mp, nil
		}
		total += uint64(len(mp.mem))
	}
	if len(m.mappings) >= maxFiles || f.size > maxBytes || total > maxBytes {
		return nil, fmt.Errorf("one guest may map %d files and %d bytes: %w", maxFiles, maxBytes, unix.ENOSPC)
	}
	mp := &mapping{dev: f.dev, ino: f.ino, writable: f.writable, refs: 1}
	if mp.mem, err = mmap(r.File, f); err != nil {
		return nil, err
	}
	m.mappings = append(m.mappings, mp)
	return mp, nil
}

// release gives one use of mp back.
func (m *Map) release(mp *mapping) {
	m.mu.Lock()
	defer m.mu.Unlock()
	mp.refs--
	if mp.refs == 0 {
		mp.idle = time.AfterFunc(grace, func() { m.expire(mp) })
	}
}

// expire unmaps mp unless it was acquired again, or closed, since its grace began.
func (m *Map) expire(mp *mapping) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := slices.Index(m.mappings, mp)
	if i < 0 || mp.refs > 0 {
		return
	}
	m.mappings = slices.Delete(m.mappings, i, i+1)
	if err := unix.Munmap(mp.mem); err != nil {
		panic(fmt.Sprintf("guestmem: munmap of our own mapping: %v", err))
	}
}

// facts is what we found out about a file that holds memory.
type facts struct {
	dev, ino           uint64
	size               uint64 // bytes
	readable, writable bool   // how this descriptor is open
}

// inspect asks the kernel about f and refuses what is not memory.
func inspect(f *os.File) (facts, error) {
	var (
		st    unix.Stat_t
		sfs   unix.Statfs_t
		flags int
	)
	err := control(f, func(fd int) (err error) {
		if err = unix.Fstat(fd, &st); err != nil {
			return err
		}
		if err = unix.Fstatfs(fd, &sfs); err != nil {
			return err
		}
		flags, err = unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		return err
	})
	if err != nil {
		return facts{}, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || sfs.Type != unix.TMPFS_MAGIC && sfs.Type != unix.HUGETLBFS_MAGIC {
		return facts{}, fmt.Errorf("not a file in memory (file mode %#o, file system %#x); a memfd is: %w",
			st.Mode, sfs.Type, unix.ENODEV)
	}
	access := flags & unix.O_ACCMODE
	return facts{
		dev: st.Dev, ino: st.Ino,
		size:     uint64(st.Size),
		readable: access != unix.O_WRONLY,
		writable: access == unix.O_RDWR,
	}, nil
}

// mmap maps the whole of f.
func mmap(file *os.File, f facts) (mem []byte, err error) {
	prot := unix.PROT_READ
	if f.writable {
		prot |= unix.PROT_WRITE
	}
	err = control(file, func(fd int) error {
		mem, err = unix.Mmap(fd, 0, int(f.size), prot, unix.MAP_SHARED)
		return err
	})
	if err != nil {
		return nil, &fs.PathError{Op: "mmap", Path: file.Name(), Err: err}
	}
	return mem, nil
}

// control calls fn with the descriptor of f, which stays open meanwhile.
func control(f *os.File, fn func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := conn.Control(func(fd uintptr) { ferr = fn(int(fd)) }); err != nil {
		return err
	}
	return ferr
}

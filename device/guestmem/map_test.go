package guestmem

import (
	"bytes"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

const (
	page = 4096
	kib  = 1 << 10
	mib  = 1 << 20
)

// memfd returns a file in memory of the given size, closed with the test.
func memfd(t testing.TB, size int64) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "guest")
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

// reopened returns f opened anew with other flags.
func reopened(t *testing.T, f *os.File, flags int) *os.File {
	t.Helper()
	var path string
	if err := control(f, func(fd int) error {
		path = filepath.Join("/proc/self/fd", strconv.Itoa(fd))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	g, err := os.OpenFile(path, flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

// sleep lets a fake clock run for d, and for whatever is due then.
func sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// newMap returns a map of regions, closed with the test.
func newMap(t testing.TB, regions ...Region) *Map {
	t.Helper()
	m := new(Map)
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, r := range regions {
		if err := m.Map(r); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// mapped counts the lines of this process's memory map that show a memfd.
func mapped(t *testing.T) int {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(maps), "/memfd:guest")
}

func TestMapRefusesImpossibleRegions(t *testing.T) {
	ram := memfd(t, 64*kib)
	readOnly := reopened(t, ram, os.O_RDONLY)
	writeOnly := reopened(t, ram, os.O_WRONLY)
	proc, err := os.Open("/proc/self/status") // stands for any file that is not kept in memory
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Close()
	zero, err := os.OpenFile("/dev/zero", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer zero.Close()
	huge := memfd(t, 2*int64(maxBytes))

	for _, test := range []struct {
		name string
		r    Region
		want error
	}{
		{"empty", Region{GPA: 0x100000, Size: 0, File: ram}, unix.EINVAL},
		{"empty at the very top", Region{GPA: math.MaxUint64}, unix.EINVAL},
		{"wraps around", Region{GPA: math.MaxUint64 - 1, Size: 3}, unix.EINVAL},
		{"greatest size without wrapping", Region{GPA: 1, Size: math.MaxUint64}, nil},
		{"wraps by the greatest size", Region{GPA: 2, Size: math.MaxUint64}, unix.EINVAL},
		{"offset off page", Region{Size: page, Offset: 512, File: ram}, unix.EINVAL},
		{"offset wraps around", Region{Size: 2 * page, Offset: math.MaxUint64 - page + 1, File: ram}, unix.EINVAL},
		{"one byte past the file", Region{Size: 64*kib + 1, File: ram}, unix.EINVAL},
		{"starts past the file", Region{Size: page, Offset: mib, File: ram}, unix.EINVAL},
		{"huge size", Region{Size: 1 << 62, File: ram}, unix.EINVAL},
		{"more than one guest may map", Region{Size: page, File: huge}, unix.ENOSPC},
		{"write to a file open for reading", Region{Size: page, File: readOnly, Read: true, Write: true}, unix.EACCES},
		{"file open for writing only", Region{Size: page, File: writeOnly, Write: true}, unix.EACCES},
		{"file on another kind of file system", Region{Size: page, File: proc, Read: true}, unix.ENODEV},
		{"device", Region{Size: page, File: zero, Read: true}, unix.ENODEV},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := newMap(t)
			if err := m.Map(test.r); !errors.Is(err, test.want) {
				t.Errorf("Map(%+v) = %v, want %v", test.r, err, test.want)
			}
			if test.want != nil && (len(m.spans) != 0 || len(m.mappings) != 0) {
				t.Errorf("a refused region left something behind")
			}
		})
	}
}

func TestMapRefusesAClosedFile(t *testing.T) {
	f := memfd(t, page)
	f.Close()
	if err := newMap(t).Map(Region{Size: page, File: f, Read: true}); err == nil {
		t.Error("a closed file was mapped")
	}
}

func TestMapRefusesOverlap(t *testing.T) {
	for _, test := range []struct {
		name      string
		gpa, size uint64
		overlaps  bool
	}{
		{"ends just before", 0x0000, 0x1000, false},
		{"ends on the first byte", 0x0000, 0x1001, true},
		{"same", 0x1000, 0x2000, true},
		{"inside", 0x1800, 0x100, true},
		{"around", 0x0000, 0x8000, true},
		{"starts on the last byte", 0x2fff, 0x1000, true},
		{"starts just after", 0x3000, 0x1000, false},
		{"around both", 0x0000, math.MaxUint64, true},
		{"up to the second", 0x3000, 0xd000, false},
		{"onto the second", 0x3000, 0xd001, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := newMap(t, Region{GPA: 0x1000, Size: 0x2000}, Region{GPA: 0x10000, Size: 0x1000})
			err := m.Map(Region{GPA: test.gpa, Size: test.size})
			if got := errors.Is(err, unix.EEXIST); got != test.overlaps {
				t.Errorf("Map(%#x+%#x) = %v, want overlap %t", test.gpa, test.size, err, test.overlaps)
			}
		})
	}
}

func TestUnmap(t *testing.T) {
	for _, test := range []struct {
		name      string
		gpa, size uint64
		want      error
		left      int
	}{
		{"exactly one", 0x1000, 0x2000, nil, 2},
		{"two neighbours", 0x1000, 0x3000, nil, 1},
		{"everything by range", 0, math.MaxUint64, nil, 0},
		{"everything by name", 0, 0, nil, 0},
		{"nothing there", 0x5000, 0x1000, unix.ENOENT, 3},
		{"cuts the front", 0x0000, 0x2000, unix.EINVAL, 3},
		{"cuts the back", 0x2000, 0x2000, unix.EINVAL, 3},
		{"cuts the second of two", 0x1000, 0x2800, unix.EINVAL, 3},
		{"wraps around", 0x1000, math.MaxUint64, unix.EINVAL, 3},
		{"empty", 0x1000, 0, unix.EINVAL, 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := newMap(t, Region{GPA: 0x1000, Size: 0x2000}, Region{GPA: 0x3000, Size: 0x1000}, Region{GPA: 0x10000, Size: 0x1000})
			if err := m.Unmap(test.gpa, test.size); !errors.Is(err, test.want) {
				t.Errorf("Unmap(%#x, %#x) = %v, want %v", test.gpa, test.size, err, test.want)
			}
			if len(m.spans) != test.left {
				t.Errorf("%d regions left, want %d", len(m.spans), test.left)
			}
		})
	}
}

func TestWindow(t *testing.T) {
	ram := memfd(t, 64*kib)
	m := newMap(t,
		Region{GPA: 0x0000, Size: 0x2000, File: ram, Offset: 0x0000, Read: true, Write: true},
		Region{GPA: 0x2000, Size: 0x1000, File: ram, Offset: 0x2000, Read: true},
		Region{GPA: 0x3000, Size: 0x1000, Read: true, Write: true}, // no file
		Region{GPA: 0x8000, Size: 0x1000, File: ram, Offset: 0x8000, Write: true},
	)
	for _, test := range []struct {
		name  string
		gpa   uint64
		n     int
		write bool
		ok    bool
	}{
		{"first byte", 0, 1, true, true},
		{"whole region", 0, 0x2000, true, true},
		{"last byte", 0x1fff, 1, false, true},
		{"across regions", 0x1fff, 2, false, false},
		{"read only, read", 0x2000, 16, false, true},
		{"read only, write", 0x2000, 16, true, false},
		{"write only, write", 0x8000, 16, true, true},
		{"write only, read", 0x8000, 16, false, false},
		{"without file", 0x3000, 1, false, false},
		{"hole", 0x4000, 1, false, false},
		{"past everything", 0x9000, 1, false, false},
		{"top of the address space", math.MaxUint64, 1, false, false},
		{"no bytes", 0, 0, false, false},
		{"negative", 0, -1, false, false},
		{"greatest", 0, math.MaxInt, false, false},
	} {
		w := m.Window(test.gpa, test.n, test.write)
		if (w != nil) != test.ok {
			t.Errorf("%s: Window(%#x, %d, %t) = %d bytes, want ok %t", test.name, test.gpa, test.n, test.write, len(w), test.ok)
		}
		if w != nil && (len(w) != test.n || cap(w) != test.n) {
			t.Errorf("%s: Window has len %d, cap %d, want %d", test.name, len(w), cap(w), test.n)
		}
	}
}

func TestTopOfTheAddressSpace(t *testing.T) {
	ram := memfd(t, page)
	m := newMap(t, Region{GPA: math.MaxUint64 - page + 1, Size: page, File: ram, Read: true, Write: true})
	if err := m.Write(math.MaxUint64, []byte{7}); err != nil {
		t.Errorf("write of the last byte there is: %v", err)
	}
	if err := m.Write(math.MaxUint64, []byte{7, 8}); !errors.Is(err, ErrUnmapped) {
		t.Errorf("write over the top = %v, want %v", err, ErrUnmapped)
	}
	if err := m.Unmap(math.MaxUint64-page+1, page); err != nil {
		t.Error(err)
	}
}

// Two regions out of order in one file and one in another: a copy sees guest addresses, not files.
func TestReadWriteCrossRegions(t *testing.T) {
	a, b := memfd(t, 4*page), memfd(t, page)
	m := newMap(t,
		Region{GPA: 0x2000, Size: page, File: b, Read: true, Write: true},
		Region{GPA: 0x0000, Size: page, File: a, Offset: 3 * page, Read: true, Write: true},
		Region{GPA: 0x1000, Size: page, File: a, Offset: page, Read: true, Write: true},
	)
	out := make([]byte, 2*page)
	for i := range out {
		out[i] = byte(i * 7)
	}
	if err := m.Write(0x800, out); err != nil {
		t.Fatal(err)
	}
	in := make([]byte, len(out))
	if err := m.Read(0x800, in); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(in, out) {
		t.Error("what was read is not what was written")
	}
	head := make([]byte, page/2)
	if _, err := a.ReadAt(head, 3*page+page/2); err != nil || !bytes.Equal(head, out[:page/2]) {
		t.Errorf("the first half page is not where its region is in the file (%v)", err)
	}
	if err := m.Write(0x2800, out); !errors.Is(err, ErrUnmapped) || !strings.Contains(err.Error(), "0x3000") {
		t.Errorf("write off the end = %v, want ErrUnmapped at 0x3000", err)
	}
	if err := m.Read(0x2fff, in[:2]); !errors.Is(err, ErrUnmapped) {
		t.Errorf("read off the end = %v, want ErrUnmapped", err)
	}
	if err := m.Read(0x9000, nil); err != nil {
		t.Errorf("reading nothing = %v", err)
	}
}

// A firmware's shadowing of its ROM takes all RAM away and gives it back in pieces of the same file.
func TestRemapKeepsTheMapping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 16 * mib
		ram := memfd(t, size)
		m := newMap(t, Region{Size: size, File: ram, Read: true, Write: true})
		if err := m.Write(0x123, []byte("ring")); err != nil {
			t.Fatal(err)
		}
		before := &m.Window(0, 1, false)[0]
		for range 5 {
			if err := m.Unmap(0, 0); err != nil {
				t.Fatal(err)
			}
			if w := m.Window(0, 1, false); w != nil {
				t.Fatal("a window into an unmapped region")
			}
			for _, r := range []Region{
				{GPA: 0, Size: 0xc0000, Offset: 0, File: ram, Read: true, Write: true},
				{GPA: 0xc0000, Size: 0x20000, Read: true},
				{GPA: 0xe0000, Size: 0x20000, Offset: 0xe0000, File: ram, Read: true, Write: true},
				{GPA: 0x100000, Size: size - 0x100000, Offset: 0x100000, File: ram, Read: true, Write: true},
			} {
				if err := m.Map(r); err != nil {
					t.Fatal(err)
				}
			}
		}
		if after := &m.Window(0, 1, false)[0]; after != before {
			t.Error("the file was mapped anew")
		}
		if n := mapped(t); n != 1 {
			t.Errorf("%d mappings, want 1", n)
		}
		if err := m.Unmap(0, 0); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := mapped(t); n != 1 {
			t.Errorf("%d mappings within the grace, want 1", n)
		}
	})
}

func TestMappingEndsAfterItsGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ram := memfd(t, mib)
		region := Region{Size: mib, File: ram, Read: true}
		m := newMap(t, region, Region{GPA: 1 << 32, Size: page, File: ram, Read: true})
		if err := m.Unmap(0, mib); err != nil {
			t.Fatal(err)
		}
		sleep(2 * grace)
		if n := mapped(t); n != 1 {
			t.Fatalf("%d mappings while a region is left, want 1", n)
		}
		if err := m.Unmap(1<<32, page); err != nil {
			t.Fatal(err)
		}
		sleep(grace - 1)
		if err := m.Map(region); err != nil {
			t.Fatal(err)
		}
		sleep(2 * grace)
		if n := mapped(t); n != 1 {
			t.Fatalf("%d mappings after reuse within the grace, want 1", n)
		}
		if err := m.Unmap(0, mib); err != nil {
			t.Fatal(err)
		}
		sleep(grace)
		if n := mapped(t); n != 0 {
			t.Errorf("%d mappings after the grace, want 0", n)
		}
		if err := m.Map(region); err != nil {
			t.Fatal(err)
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		if n := mapped(t); n != 0 {
			t.Errorf("%d mappings after Close, want 0", n)
		}
		if err := m.Map(region); err != nil {
			t.Errorf("a closed map cannot be used again: %v", err)
		}
	})
}

// The hypervisor may open its file a second time with other rights, or extend it.
func TestOneMappingPerKindOfAccess(t *testing.T) {
	ram := memfd(t, mib)
	m := newMap(t, Region{Size: page, File: reopened(t, ram, os.O_RDONLY), Read: true})
	if err := m.Map(Region{GPA: mib, Size: page, File: ram, Read: true, Write: true}); err != nil {
		t.Fatal(err)
	}
	if err := m.Write(mib, []byte("shared")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 6)
	if err := m.Read(0, got); err != nil || string(got) != "shared" {
		t.Errorf("read %q, %v through the other mapping", got, err)
	}
	if err := ram.Truncate(2 * mib); err != nil {
		t.Fatal(err)
	}
	if err := m.Map(Region{GPA: 8 * mib, Size: page, Offset: mib, File: ram, Read: true}); err != nil {
		t.Errorf("region in the extension of a mapped file: %v", err)
	}
}

func TestLimits(t *testing.T) {
	m := newMap(t)
	for i := range maxFiles {
		if err := m.Map(Region{GPA: uint64(i) * page, Size: page, File: memfd(t, page), Read: true}); err != nil {
			t.Fatal(err)
		}
	}
	one := memfd(t, page)
	if err := m.Map(Region{GPA: maxFiles * page, Size: page, File: one, Read: true}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("file %d: %v, want ENOSPC", maxFiles+1, err)
	}
	for i := maxFiles; i < maxRegions; i++ {
		if err := m.Map(Region{GPA: uint64(i) * page, Size: page}); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Map(Region{GPA: maxRegions * page, Size: page}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("region %d: %v, want ENOSPC", maxRegions+1, err)
	}

	m = newMap(t)
	for i := range 2 {
		err := m.Map(Region{GPA: uint64(i) * page, Size: page, File: memfd(t, int64(maxBytes/2)), Read: true})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Map(Region{GPA: 2 * page, Size: page, File: one, Read: true}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a page more than one guest may map: %v, want ENOSPC", err)
	}
}

func TestLookupDoesNotAllocate(t *testing.T) {
	ram := memfd(t, mib)
	m := newMap(t,
		Region{GPA: 0, Size: 64 * kib, File: ram, Read: true, Write: true},
		Region{GPA: mib, Size: 64 * kib, File: ram, Read: true, Write: true},
	)
	buf := make([]byte, 64)
	var sum int
	if n := testing.AllocsPerRun(100, func() {
		err := Guard(func() {
			sum += len(m.Window(0, 64, true)) + len(m.Window(mib, 64, false))
			if m.Read(100, buf) != nil || m.Write(mib, buf) != nil {
				panic("unmapped")
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
	if sum == 0 {
		t.Error("no window")
	}
}

func BenchmarkWindow(b *testing.B) {
	ram := memfd(b, mib)
	m := newMap(b,
		Region{GPA: 0, Size: 0xc0000, File: ram, Read: true, Write: true},
		Region{GPA: 0xc0000, Size: 0x20000, Read: true},
		Region{GPA: 0x100000, Size: 0x80000, File: ram, Read: true, Write: true},
		Region{GPA: 1 << 32, Size: 0x80000, File: ram, Read: true, Write: true},
	)
	b.Run("same", func(b *testing.B) {
		for b.Loop() {
			m.Window(0x100000, 64, true)
		}
	})
	b.Run("alternating", func(b *testing.B) {
		for b.Loop() {
			m.Window(0, 64, true)
			m.Window(1<<32, 64, true)
		}
	})
	b.Run("guard", func(b *testing.B) {
		for b.Loop() {
			if err := Guard(func() { m.Window(0, 64, true) }); err != nil {
				b.Fatal(err)
			}
		}
	})
}

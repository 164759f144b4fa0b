package virtq

import "fmt"

// Memory is the guest's memory as a queue sees it. A *guestmem.Map is one.
type Memory interface {
	// Window returns the n bytes at guest-physical address gpa themselves, or nil unless n is
	// positive and they lie in one piece that the device may write, if write, or read.
	Window(gpa uint64, n int, write bool) []byte
}

const (
	maxPieces = 8       // pieces of memory that are remembered: more than guests without hot-plug have
	maxPiece  = 1 << 46 // bytes that are looked for to each side of an address: all that processors map
	maxSplit  = 8       // pieces that one descriptor may span: 2 if a buffer is smaller than a piece
)

// piece is guest memory that is contiguous here as well.
type piece struct {
	first uint64 // guest-physical address of mem[0]
	mem   []byte
}

// window returns n bytes at addr, or nil if n is 0 or they are not all in p.
func (p *piece) window(addr uint64, n uint32) []byte {
	off, size := addr-p.first, uint64(len(p.mem))
	if off < size && uint64(n)-1 < size-off { // n = 0 wraps around and fails
		return p.mem[off : off+uint64(n) : off+uint64(n)]
	}
	return nil
}

// rest returns the memory from addr to the end of p, or nil if addr is not in p.
func (p *piece) rest(addr uint64) []byte {
	if off := addr - p.first; off < uint64(len(p.mem)) {
		return p.mem[off:]
	}
	return nil
}

// pieces translates addresses for one kind of access. Nearly every buffer lies in the piece of the one
// before, so that a comparison takes the place of a call through an interface and a search.
type pieces struct {
	hit   piece // the last one
	known [maxPieces]piece
	n     int // how many are known
	mem   Memory
	write bool
}

// forget drops what is remembered, because the memory map changed.
func (t *pieces) forget() {
	*t = pieces{mem: t.mem, write: t.write}
}

// scatter appends the n bytes at addr to parts, for those that are not in the last piece: they may be in
// another one, span several, or not exist.
func (t *pieces) scatter(parts [][]byte, addr uint64, n uint32) ([][]byte, error) {
	switch {
	case n == 0:
		return parts, malformed("descriptor of length 0 at address %#x", addr)
	case addr+uint64(n)-1 < addr:
		return parts, malformed("descriptor at address %#x of length %#x wraps around", addr, n)
	}
	for i, at, left := 1, addr, uint64(n); ; i++ {
		b := t.find(at, left)
		if b == nil {
			return parts, malformed("descriptor at address %#x of length %#x: no memory to %s at %#x", addr, n, t.verb(), at)
		}
		if i > maxSplit {
			return parts, malformed("descriptor at address %#x of length %#x spans more than %d pieces of memory", addr, n, maxSplit)
		}
		if left <= uint64(len(b)) {
			return append(parts, b[:left:left]), nil
		}
		parts = append(parts, b)
		at, left = at+uint64(len(b)), left-uint64(len(b))
	}
}

// find returns memory from addr on, n bytes of it if it can, or nil if there is none.
func (t *pieces) find(addr, n uint64) []byte {
	for i := range t.known[:t.n] {
		if b := t.known[i].rest(addr); b != nil {
			t.hit = t.known[i]
			return b
		}
	}
	if t.n == maxPieces { // so many pieces: ask each time
		if b := t.mem.Window(addr, int(n), t.write); b != nil {
			return b
		}
	}
	p := t.explore(addr)
	if p.mem == nil {
		return nil
	}
	if t.n < maxPieces {
		t.known[t.n] = p
		t.n++
		t.hit = p
	}
	return p.rest(addr)
}

// explore finds the whole piece around addr by asking for windows of different sizes.
func (t *pieces) explore(addr uint64) piece {
	n := largest(maxPiece, func(n uint64) bool { return t.mem.Window(addr, int(n), t.write) != nil })
	if n == 0 {
		return piece{}
	}
	back := largest(min(addr, maxPiece), func(n uint64) bool { return t.mem.Window(addr-n, int(n)+1, t.write) != nil })
	return piece{addr - back, t.mem.Window(addr-back, int(back+n), t.write)}
}

// largest returns the largest n up to limit with ok(n), where ok holds for all smaller ones too; 0 is not asked.
func largest(limit uint64, ok func(uint64) bool) uint64 {
	lo, hi := uint64(0), limit
	for lo < hi {
		mid := hi - (hi-lo)/2
		if ok(mid) {
			lo = mid
		} else {
			hi = mid - 1
		}
	}
	return lo
}

// verb says what kind of access t is for.
func (t *pieces) verb() string {
	if t.write {
		return "write"
	}
	return "read"
}

// area is one of the three parts of a ring.
type area struct {
	name  string
	gpa   uint64
	size  int
	align uint64 // bytes
	write bool   // the device writes it
}

// window returns the memory of a, after the checks that the rest of the package relies on.
func (a area) window(mem Memory) ([]byte, error) {
	if a.gpa%a.align != 0 {
		return nil, fmt.Errorf("%s at %#x is not aligned to %d bytes", a.name, a.gpa, a.align)
	}
	b := mem.Window(a.gpa, a.size, false)
	if b != nil && a.write {
		b = mem.Window(a.gpa, a.size, true)
	}
	if b == nil {
		return nil, fmt.Errorf("%s at %#x+%#x is not in one piece of accessible memory", a.name, a.gpa, a.size)
	}
	if !aligned(b, uintptr(a.align)) {
		return nil, fmt.Errorf("%s at %#x is in memory that is mapped at an odd address", a.name, a.gpa)
	}
	return b, nil
}

// overlaps reports whether a and b share a byte. Neither wraps around, as both have a window.
func (a area) overlaps(b area) bool {
	return a.gpa <= b.gpa+uint64(b.size-1) && b.gpa <= a.gpa+uint64(a.size-1)
}

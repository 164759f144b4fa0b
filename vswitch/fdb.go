package vswitch

import (
	"math/bits"
	"math/rand/v2"
	"sync"
	"sync/atomic"
)

// fdb is the forwarding database: which slot an address was last seen behind.
//
// It is a hash table of fixed size. An address has two buckets it may lie in,
// each of four ways, and goes to the emptier one. So a table is about half full
// when an address first finds both full (with one bucket for an address, a
// seventh). The hash is seeded at random, so that a guest cannot choose
// addresses which share a bucket.
//
// An entry is one word, so that readers need no lock and can never see half of
// one. They may miss an entry that is being replaced, in which case the frame
// at hand is flooded.
type fdb struct {
	buckets []bucket // a power of two
	seed    [3]uint64

	mu        sync.Mutex // guards what follows and every write to a bucket's words
	shares    []share    // index slot
	total     int        // entries in use
	evictions uint64     // entries replaced by an address that needed the room
	refusals  uint64     // addresses not learned for want of room
}

const ways = 4

// bucket fills one cache line, so that finding an entry and refreshing it
// touches one.
type bucket struct {
	word [ways]atomic.Uint64 // address << 16 | slot; 0 is free
	seen [ways]atomic.Uint32 // epoch of the last frame from the address
	_    [cacheLine - ways*(8+4)]byte
}

// share is what one slot has of the table.
type share struct {
	owned int
	limit int
}

func newFDB(size int) *fdb {
	n := 1 << bits.Len(uint(max(size, 1)-1)) // round up to a power of two
	return &fdb{
		buckets: make([]bucket, max(n/ways, 1)),
		seed:    [3]uint64{rand.Uint64(), rand.Uint64() | 1, rand.Uint64() | 1},
	}
}

// candidates returns the two buckets in which k may lie. They can be the same.
func (f *fdb) candidates(k macKey) (first, second *bucket) {
	h := uint64(k) ^ f.seed[0]
	h *= f.seed[1]
	h = (h ^ h>>32) * f.seed[2]
	h ^= h >> 32
	mask := uint64(len(f.buckets) - 1)
	return &f.buckets[h&mask], &f.buckets[h>>32&mask]
}

// find returns where k lies and the slot it is behind, or slot 0. The address
// of zeros, which is never learned, matches a free way and so slot 0.
func (f *fdb) find(k macKey) (*bucket, int, slot) {
	b, second := f.candidates(k)
	for way := range b.word {
		if w := b.word[way].Load(); w>>16 == uint64(k) {
			return b, way, slot(w)
		}
	}
	for way := range second.word {
		if w := second.word[way].Load(); w>>16 == uint64(k) {
			return second, way, slot(w)
		}
	}
	return nil, 0, 0
}

// lookup returns the slot that k is behind, or 0 if that is not known.
func (f *fdb) lookup(k macKey) slot {
	_, _, n := f.find(k)
	return n
}

// learn notes that a frame from k came in at slot n during epoch. It reports
// whether k was known to be behind another slot. In the common case, an
// address that was seen there in this epoch, it only reads.
func (f *fdb) learn(k macKey, n slot, epoch uint32) (moved bool) {
	if b, way, at := f.find(k); at == n {
		if b.seen[way].Load() != epoch {
			b.seen[way].Store(epoch)
		}
		return false
	}
	return f.enter(k, n, epoch)
}

// enter is learn for an address that is not known, or known elsewhere.
func (f *fdb) enter(k macKey, n slot, epoch uint32) (moved bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, way, at := f.find(k)
	if at == n {
		return false // another Ingress of the same member was faster
	}
	moved = at != 0
	if !moved || f.shares[n].full() {
		if moved {
			f.put(b, way, 0)
		}
		if b, way = f.place(k, n); b == nil {
			f.refusals++
			return moved
		}
	}
	b.seen[way].Store(epoch)
	f.put(b, way, uint64(k)<<16|uint64(n))
	return moved
}

func (s share) full() bool { return s.owned >= s.limit }

// used returns how many ways of b are not free.
func (b *bucket) used() int {
	n := 0
	for way := range b.word {
		if b.word[way].Load() != 0 {
			n++
		}
	}
	return n
}

// place finds a way for a new address k of slot n, or nil if n must do without.
//
// A free way will do, in the emptier of k's two buckets. Failing that, of the
// entries in them, one of the slot that owns most entries in the whole table
// gives way, of these the one not seen for the longest time. The newcomer's own
// slot takes part in the comparison, and loses if it owns more than all the
// others. So a port that invents addresses competes with itself, and one with
// few addresses keeps them: an entry is never replaced by one of a slot that
// owns more. Looking no further than two buckets bounds the work of a frame
// from an unknown address.
//
// A slot at its limit can only replace entries of its own.
func (f *fdb) place(k macKey, n slot) (victim *bucket, victimWay int) {
	first, second := f.candidates(k)
	capped := f.shares[n].full()
	if !capped {
		b := first
		if second.used() < first.used() {
			b = second
		}
		for way := range b.word {
			if b.word[way].Load() == 0 {
				return b, way
			}
		}
	}
	most := f.shares[n].owned
	for _, b := range [2]*bucket{first, second} {
		for way := range b.word {
			owner := slot(b.word[way].Load())
			if owner == 0 || capped && owner != n {
				continue
			}
			owned := f.shares[owner].owned
			if owned > most || owned == most &&
				(victim == nil || b.seen[way].Load() < victim.seen[victimWay].Load()) {
				victim, victimWay, most = b, way, owned
			}
		}
	}
	if victim != nil {
		f.evictions++
	}
	return victim, victimWay
}

// put replaces what is in a way by w, which is 0 to free it. f.mu is held.
func (f *fdb) put(b *bucket, way int, w uint64) {
	if old := slot(b.word[way].Load()); old != 0 {
		f.shares[old].owned--
		f.total--
	}
	if n := slot(w); n != 0 {
		f.shares[n].owned++
		f.total++
	}
	b.word[way].Store(w)
}

// admit lets slot n own up to limit entries.
func (f *fdb) admit(n slot, limit int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for int(n) >= len(f.shares) {
		f.shares = append(f.shares, share{})
	}
	f.shares[n] = share{limit: limit}
}

// flush forgets the addresses behind slot n, or all if n is 0, and returns how
// many they were.
func (f *fdb) flush(n slot) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := f.total
	for i := range f.buckets {
		b := &f.buckets[i]
		for way := range b.word {
			if n == 0 || slot(b.word[way].Load()) == n {
				f.put(b, way, 0)
			}
		}
	}
	return before - f.total
}

// expire forgets the addresses not seen in the last age epochs before now. It
// takes the lock only for what it removes: an address seen again at this very
// moment may go too, and is learned again with its next frame.
func (f *fdb) expire(now, age uint32) {
	for i := range f.buckets {
		b := &f.buckets[i]
		for way := range b.word {
			if b.word[way].Load() != 0 && now-b.seen[way].Load() > age {
				f.mu.Lock()
				f.put(b, way, 0)
				f.mu.Unlock()
			}
		}
	}
}

// each calls yield for every entry.
func (f *fdb) each(yield func(k macKey, n slot, seen uint32)) {
	for i := range f.buckets {
		b := &f.buckets[i]
		for way := range b.word {
			if w := b.word[way].Load(); w != 0 {
				yield(macKey(w>>16), slot(w), b.seen[way].Load())
			}
		}
	}
}

// owned returns how many entries slot n has.
func (f *fdb) owned(n slot) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.shares[n].owned
}

// size returns how many entries the table can hold.
func (f *fdb) size() int { return len(f.buckets) * ways }

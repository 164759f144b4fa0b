package vswitch

import (
	"math/rand/v2"
	"sync"
	"testing"
)

// newTestFDB makes a table in which slots 1 to n may own limit entries each.
func newTestFDB(size, n, limit int) *fdb {
	f := newFDB(size)
	f.seed = [3]uint64{0x5dc2114009000011, 0x9e3779b97f4a7c15, 0xd1b54a32d192ed03}
	for i := 1; i <= n; i++ {
		f.admit(slot(i), limit)
	}
	return f
}

// check compares the table's book-keeping with its contents.
func (f *fdb) check(t *testing.T) {
	t.Helper()
	owned := make([]int, len(f.shares))
	at := make(map[macKey]bool)
	total := 0
	f.each(func(k macKey, n slot, _ uint32) {
		if at[k] {
			t.Errorf("%v has two entries", k.mac())
		}
		at[k] = true
		if f.lookup(k) != n {
			t.Errorf("%v is at slot %d but found at %d", k.mac(), n, f.lookup(k))
		}
		owned[n]++
		total++
	})
	if total != f.total {
		t.Errorf("the table counts %d entries and has %d", f.total, total)
	}
	for n, share := range f.shares {
		if share.owned != owned[n] {
			t.Errorf("the table counts %d entries of slot %d and has %d", share.owned, n, owned[n])
		}
		if share.owned > share.limit {
			t.Errorf("slot %d has %d entries, more than its limit of %d", n, share.owned, share.limit)
		}
	}
}

func TestFDBSize(t *testing.T) {
	for _, test := range []struct{ asked, size int }{
		{1, 4}, {4, 4}, {5, 8}, {8, 8}, {1000, 1024}, {8192, 8192}, {8193, 16384},
	} {
		if size := newFDB(test.asked).size(); size != test.size {
			t.Errorf("a table for %d entries has room for %d, want %d", test.asked, size, test.size)
		}
	}
}

// TestFDBFill shows how full the table gets before it forgets anything.
func TestFDBFill(t *testing.T) {
	f := newTestFDB(8192, 1, 8192)
	var first int
	for i := range 8192 {
		f.learn(macKey(0x020000000000+i), 1, 0)
		if first == 0 && f.evictions != 0 {
			first = i
		}
	}
	f.check(t)
	t.Logf("first eviction at %d of 8192 entries; %d evictions, %d entries in the end", first, f.evictions, f.total)
	if first < 8192/2 {
		t.Errorf("first eviction at %d entries: the table should fill half without one", first)
	}
	if f.total+int(f.evictions) != 8192 {
		t.Errorf("%d entries and %d evictions do not add up", f.total, f.evictions)
	}
}

// TestFDBFlood has one port flood the table with addresses. It competes with
// itself, and ports with fewer keep theirs.
func TestFDBFlood(t *testing.T) {
	const others, each = 20, 10
	f := newTestFDB(1024, others+1, 1024)
	addr := func(port, i int) macKey { return macKey(0x020000000000 + port<<16 + i) }
	for port := 2; port <= others+1; port++ {
		for i := range each {
			f.learn(addr(port, i), slot(port), 0)
		}
	}
	for i := range 50_000 {
		f.learn(0x06_00_00_00_00_00+macKey(i), 1, 1)
	}
	f.check(t)
	for port := 2; port <= others+1; port++ {
		for i := range each {
			if at := f.lookup(addr(port, i)); at != slot(port) {
				t.Errorf("%v of port %d is at %d after the flood", addr(port, i).mac(), port, at)
			}
		}
	}
	if f.evictions == 0 {
		t.Error("the flood evicted nothing, not even addresses of its own")
	}

	// A port that comes late finds room, at the cost of the one that has most.
	before := f.shares[1].owned
	f.admit(others+2, 1024)
	for i := range each {
		f.learn(addr(others+2, i), others+2, 2)
	}
	f.check(t)
	if n := f.shares[others+2].owned; n != each {
		t.Errorf("a port that came late could keep %d of %d addresses", n, each)
	}
	if f.shares[1].owned >= before {
		t.Error("the port that came late displaced nothing of the flood's")
	}
}

// TestFDBPlace fills a table of a single bucket, where all can be foreseen.
func TestFDBPlace(t *testing.T) {
	type entry struct {
		k     macKey
		n     slot
		epoch uint32
	}
	for _, test := range []struct {
		name  string
		limit int
		have  []entry
		add   entry
		gone  macKey // 0: none
		want  slot   // where the added address is in the end; 0: not learned
		count [2]uint64
	}{
		{"a free way is used", 9, []entry{{1, 1, 5}, {2, 1, 4}, {3, 1, 3}}, entry{4, 1, 6}, 0, 1, [2]uint64{0, 0}},
		{"the oldest of one's own goes", 9, []entry{{1, 1, 5}, {2, 1, 3}, {3, 1, 4}, {4, 1, 6}}, entry{5, 1, 7}, 2, 1, [2]uint64{1, 0}},
		{"the oldest of the biggest goes, not the oldest", 9, []entry{{1, 1, 1}, {2, 2, 5}, {3, 2, 4}, {4, 2, 6}}, entry{5, 3, 7}, 3, 3, [2]uint64{1, 0}},
		{"the biggest replaces its own, not a smaller one's", 9, []entry{{1, 1, 1}, {2, 2, 5}, {3, 2, 4}, {4, 2, 6}}, entry{5, 2, 7}, 3, 2, [2]uint64{1, 0}},
		{"between equals the oldest goes", 9, []entry{{1, 1, 5}, {2, 1, 4}, {3, 2, 3}, {4, 2, 6}}, entry{5, 1, 7}, 3, 1, [2]uint64{1, 0}},
		{"at its limit a port replaces its own though there is room", 2, []entry{{1, 1, 5}, {2, 1, 4}}, entry{5, 1, 7}, 2, 1, [2]uint64{1, 0}},
		{"a move stays in place", 4, []entry{{1, 1, 5}, {2, 1, 4}, {3, 2, 3}, {4, 2, 6}}, entry{1, 2, 7}, 0, 2, [2]uint64{0, 0}},
		{"a move to a port at its limit costs it another", 2, []entry{{1, 1, 5}, {3, 2, 3}, {4, 2, 6}}, entry{1, 2, 7}, 3, 2, [2]uint64{1, 0}},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newTestFDB(4, 3, test.limit)
			for _, e := range test.have {
				f.learn(e.k, e.n, e.epoch)
			}
			f.learn(test.add.k, test.add.n, test.add.epoch)
			f.check(t)
			if at := f.lookup(test.add.k); at != test.want {
				t.Errorf("the new address is at slot %d, want %d", at, test.want)
			}
			for _, e := range test.have {
				if e.k == test.add.k {
					continue
				}
				want := e.n
				if e.k == test.gone {
					want = 0
				}
				if at := f.lookup(e.k); at != want {
					t.Errorf("address %d is at slot %d, want %d", e.k, at, want)
				}
			}
			if got := [2]uint64{f.evictions, f.refusals}; got != test.count {
				t.Errorf("evictions and refusals are %d, want %d", got, test.count)
			}
		})
	}
}

// TestFDBRefuse has addresses that a port has no room for.
func TestFDBRefuse(t *testing.T) {
	t.Run("bucket full of smaller ports", func(t *testing.T) {
		f := newTestFDB(64, 20, 64)
		first, second := f.candidates(100)
		if first == second {
			t.Fatal("the test wants an address with two buckets")
		}
		for k, n := macKey(1000), slot(2); n < 2+2*ways; k++ { // fill both, one entry a port
			if a, b := f.candidates(k); a == first && b == second || a == second && b == first {
				f.learn(k, n, 0)
				n++
			}
		}
		elsewhere := 0
		for k := macKey(2000); elsewhere < 3; k++ { // and give port 1 more, somewhere else
			a, b := f.candidates(k)
			if a != first && a != second && b != first && b != second {
				f.learn(k, 1, 0)
				elsewhere++
			}
		}
		before := f.total
		f.learn(100, 1, 1)
		f.check(t)
		if f.lookup(100) != 0 || f.refusals != 1 || f.total != before {
			t.Errorf("slot %d, %d refusals, %d entries of %d: want it refused", f.lookup(100), f.refusals, f.total, before)
		}
	})
	t.Run("at the limit, own entries elsewhere", func(t *testing.T) {
		f := newTestFDB(1024, 2, 1)
		f.learn(1, 1, 0)
		first, second := f.candidates(1)
		k := macKey(2)
		for a, b := f.candidates(k); a == first || a == second || b == first || b == second; a, b = f.candidates(k) {
			k++
		}
		f.learn(k, 1, 0)
		f.check(t)
		if f.lookup(1) != 1 || f.lookup(k) != 0 || f.refusals != 1 {
			t.Errorf("slots %d and %d, %d refusals: want 1, 0 and 1", f.lookup(1), f.lookup(k), f.refusals)
		}
		// The same address known elsewhere is a move to where it cannot be: it
		// is forgotten, so that its frames are flooded and not sent astray.
		f.learn(k, 2, 0)
		if moved := f.learn(k, 1, 0); !moved || f.lookup(k) != 0 {
			t.Errorf("moved %v, slot %d: want a move to nowhere", moved, f.lookup(k))
		}
		f.check(t)
	})
}

func TestFDBZeroAddress(t *testing.T) {
	f := newTestFDB(64, 1, 64)
	if at := f.lookup(0); at != 0 {
		t.Errorf("address 0 is at slot %d in an empty table", at)
	}
	for k := macKey(1); k < 60; k++ {
		f.learn(k, 1, 0)
	}
	if at := f.lookup(0); at != 0 {
		t.Errorf("address 0 is at slot %d", at)
	}
}

// TestFDBExpire counts epochs, also across the wrap of the counter.
func TestFDBExpire(t *testing.T) {
	for _, start := range []uint32{0, 1000, 1<<32 - 5} {
		f := newTestFDB(64, 1, 64)
		f.learn(1, 1, start)
		f.learn(2, 1, start)
		f.learn(2, 1, start+3) // heard again
		f.expire(start+10, 10)
		if f.lookup(1) != 1 {
			t.Errorf("from %d: forgotten after 10 epochs of 10", start)
		}
		f.expire(start+11, 10)
		if f.lookup(1) != 0 {
			t.Errorf("from %d: remembered after 11 epochs of 10", start)
		}
		if f.lookup(2) != 1 {
			t.Errorf("from %d: forgotten 8 epochs after it was heard", start)
		}
		f.expire(start+14, 10)
		if f.lookup(2) != 0 {
			t.Errorf("from %d: remembered 11 epochs after it was heard", start)
		}
		f.check(t)
	}
}

// TestFDBConcurrent has readers and writers of all kinds in a table that is too
// small. Address k is only ever learned at slot 1 + k%4 or 2 + k%4, so whatever
// else a reader finds is not an entry anybody made.
func TestFDBConcurrent(t *testing.T) {
	const addresses, rounds = 200, 20_000
	f := newTestFDB(64, 6, 40)
	var wg sync.WaitGroup
	for seed := range uint64(3) {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(seed, 0))
			for i := range rounds {
				k := 1 + random.IntN(addresses)
				f.learn(macKey(k), slot(1+k%4+random.IntN(2)), uint32(i))
				k = 1 + random.IntN(addresses)
				if at := int(f.lookup(macKey(k))); at != 0 && at != 1+k%4 && at != 2+k%4 {
					t.Errorf("address %d is at slot %d", k, at)
				}
			}
		})
	}
	for i := range 200 {
		f.flush(slot(i % 6))
		f.expire(uint32(i), 100)
		f.each(func(k macKey, at slot, _ uint32) {
			if int(at) != 1+int(k)%4 && int(at) != 2+int(k)%4 {
				t.Errorf("address %d is listed at slot %d", k, at)
			}
		})
	}
	wg.Wait()
	f.check(t)
}

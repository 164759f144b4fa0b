package virtq_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"polder/device/virtq"
	"polder/device/virtq/virtqtest"
)

// A device that died under a packed ring is followed by one that is told a base from long ago. It goes on where the
// first one was, as long as each buffer is one descriptor of the ring.
func TestPackedRingTellsWhereItIs(t *testing.T) {
	for _, num := range []int{1, 2, 3, 7, 8, 64} {
		for _, indirect := range []bool{false, true} {
			o := virtqtest.Options{Num: num, Packed: true, EventIdx: true, Indirect: indirect}
			t.Run(o.String(), func(t *testing.T) {
				rnd := rand.New(rand.NewPCG(1, uint64(num)))
				ram := virtqtest.NewRAM(t, base, size)
				d := virtqtest.NewDriver(ram, o)
				out := ram.Alloc(1, 1)
				in := ram.Alloc(1, 1)
				c := d.Config()
				stale := []uint32{c.Base, c.Base | c.Base<<16, 0} // the last is User Mode Linux's
				q := mustNew(t, ram, c)
				chains := make([]virtq.Chain, num)
				var given, back []int
				for round := range 2000 {
					for d.Room() > 0 && rnd.IntN(3) > 0 {
						token := slices.Index(tokens(given, back, num), false)
						bufs := []virtqtest.Buffer{{Addr: out, Len: 1}}
						if indirect && rnd.IntN(2) == 0 {
							bufs = append(bufs, virtqtest.Buffer{Addr: in, Len: 1, Write: true})
						}
						if !d.Add(bufs, token, len(bufs) > 1) {
							break
						}
						given = append(given, token)
					}
					d.Publish()
					n, err := q.Take(chains[:rnd.IntN(num+1)])
					if err != nil {
						t.Fatal(err)
					}
					if rnd.IntN(8) > 0 { // otherwise it dies with them
						for i := range n {
							q.Done(&chains[i], uint32(min(len(chains[i].In), 1)))
						}
						if n > 1 || rnd.IntN(8) > 0 { // it does not die when of several it has written some
							q.Publish()
						}
					}
					if rnd.IntN(4) > 0 {
						for u, ok := d.Reap(); ok; u, ok = d.Reap() {
							back = append(back, u.Token)
						}
						if !slices.Equal(back, given[:len(back)]) {
							t.Fatalf("round %d: buffers %v came back, of %v", round, back, given)
						}
						given, back = given[len(back):], nil
					}
					c.Base = stale[rnd.IntN(len(stale))]
					q = mustNew(t, ram, c)
					stale = append(stale[:3], q.Base())
				}
			})
		}
	}
}

// tokens tells which are under way.
func tokens(given, back []int, num int) []bool {
	busy := make([]bool, num)
	for _, token := range given[len(back):] {
		busy[token] = true
	}
	return busy
}

// Where the ring does not tell, the base counts.
func TestBaseOfAPackedRing(t *testing.T) {
	const avail, used = 1 << 7, 1 << 15
	for _, row := range []struct {
		name    string
		flags   [4]uint16
		inOrder bool
		want    uint32
	}{
		{"new", [4]uint16{}, false, 0x8000_8000},
		{"new, and full", [4]uint16{avail, avail, avail, avail}, false, 0x8000_8000},
		{"all used once", [4]uint16{avail | used, avail | used, avail | used, avail | used}, false, 0},
		{"available a second time", [4]uint16{used, used, used, used}, false, 0},
		{"in the second round", [4]uint16{0, avail, used, avail | used}, false, 0x0002_0002},
		{"a list", [4]uint16{avail | used, virtqtest.Next | avail, avail, 0}, false, 0x8003_8003},
		{"a list, used", [4]uint16{avail | used, avail | used | virtqtest.Next, avail, 0}, false, 0x8003_8003},
		{"two gaps", [4]uint16{used, 0, used, 0}, false, 0x8003_8003},
		{"in order", [4]uint16{used, used, 0, 0}, true, 0x8003_8003},
	} {
		t.Run(row.name, func(t *testing.T) {
			ram := virtqtest.NewRAM(t, base, size)
			d := virtqtest.NewDriver(ram, virtqtest.Options{Num: 4, Packed: true, InOrder: row.inOrder})
			for i, flags := range row.flags {
				d.SetDesc(i, 0, 0, flags, 0)
			}
			c := d.Config()
			c.Base = 0x8003_8003
			if q := mustNew(t, ram, c); q.Base() != row.want {
				t.Errorf("base %#x, want %#x", q.Base(), row.want)
			}
			c.Base = 0x8003_8002 // something is under way, as the base says
			if q := mustNew(t, ram, c); q.Base() != 0x8003_8002 {
				t.Errorf("base %#x, want %#x", q.Base(), 0x8003_8002)
			}
		})
	}
}

// User Mode Linux passes base 0 with a new ring, whatever is available in it.
func TestBaseOfANewPackedRing(t *testing.T) {
	for _, inOrder := range []bool{false, true} {
		ram := virtqtest.NewRAM(t, base, size)
		d := virtqtest.NewDriver(ram, virtqtest.Options{Num: 8, Packed: true, InOrder: inOrder})
		at := ram.Alloc(1, 1)
		d.Add([]virtqtest.Buffer{{Addr: at, Len: 1}, {Addr: at, Len: 1}}, 0, false)
		d.Publish()
		c := d.Config()
		c.Base = 0
		if q := mustNew(t, ram, c); q.Base() != 0x8000_8000 {
			t.Errorf("base %#x, want %#x", q.Base(), 0x8000_8000)
		}
	}
}

// A buffer of several descriptors leaves a trace in the ring, by which a device knows that it does not tell.
func TestListsLeaveATrace(t *testing.T) {
	ram := virtqtest.NewRAM(t, base, size)
	d := virtqtest.NewDriver(ram, virtqtest.Options{Num: 4, Packed: true})
	q := mustNew(t, ram, d.Config())
	at := ram.Alloc(1, 1)
	d.Add([]virtqtest.Buffer{{Addr: at, Len: 1}, {Addr: at, Len: 1}}, 0, false)
	d.Publish()
	var chains [1]virtq.Chain
	if n, err := q.Take(chains[:]); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	q.Done(&chains[0], 0)
	q.Publish()
	if u, ok := d.Reap(); !ok || u.Token != 0 {
		t.Errorf("got %+v, %t", u, ok)
	}
	c := d.Config()
	c.Base = q.Base()
	if next := mustNew(t, ram, c); next.Base() != 0x8002_8002 {
		t.Errorf("base %#x, want %#x", next.Base(), 0x8002_8002)
	}
}

package virtq_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"polder/device/virtq"
	"polder/device/virtq/virtqtest"
)

const (
	base = 0x10_0000 // of the first region
	size = 1 << 20
)

func mustNew(t testing.TB, ram virtq.Memory, c virtq.Config) *virtq.Queue {
	t.Helper()
	q, err := virtq.New(ram, c)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// rings is every kind of ring, of a given size.
func rings(num int) (list []virtqtest.Options) {
	for i := range 16 {
		list = append(list, virtqtest.Options{Num: num, Packed: i&1 != 0, EventIdx: i&2 != 0, InOrder: i&4 != 0, Indirect: i&8 != 0})
	}
	return list
}

// both is the two layouts with all features.
func both(num int) []virtqtest.Options {
	o := virtqtest.Options{Num: num, EventIdx: true, Indirect: true}
	p := o
	p.Packed = true
	return []virtqtest.Options{o, p}
}

// forEach runs a subtest for each ring.
func forEach(t *testing.T, list []virtqtest.Options, fn func(t *testing.T, o virtqtest.Options)) {
	for _, o := range list {
		t.Run(o.String(), func(t *testing.T) { fn(t, o) })
	}
}

func lens(parts [][]byte) (list []int) {
	for _, p := range parts {
		list = append(list, len(p))
	}
	return list
}

// Buffers of every shape arrive as they were sent, at every position of the ring.
func TestChains(t *testing.T) {
	shapes := []struct {
		name    string
		out, in []int
	}{
		{"one to read", []int{64}, nil},
		{"one to write", nil, []int{64}},
		{"header apart", []int{12, 1500}, nil},
		{"both", []int{1, 2, 3}, []int{4, 5}},
		{"as long as the ring", []int{1, 2, 3, 4}, []int{5, 6, 7, 8}},
	}
	forEach(t, rings(8), func(t *testing.T, o virtqtest.Options) {
		ram := virtqtest.NewRAM(t, base, size)
		d := virtqtest.NewDriver(ram, o)
		q := mustNew(t, ram, d.Config())
		chains := make([]virtq.Chain, 4)
		token := 0
		for round := range 7 {
			for _, s := range shapes {
				for _, indirect := range []bool{false, o.Indirect} {
					var bufs []virtqtest.Buffer
					var out, in [][]byte
					for i, n := range append(slices.Clone(s.out), s.in...) {
						b := virtqtest.Buffer{Addr: base + size/2 + uint64(4096*i), Len: uint32(n), Write: i >= len(s.out)}
						bufs = append(bufs, b)
						if b.Write {
							in = append(in, ram.Bytes(b.Addr, n))
						} else {
							out = append(out, ram.Bytes(b.Addr, n))
						}
					}
					if !d.Add(bufs, token, indirect) {
						t.Fatalf("no room for %q", s.name)
					}
					if n, err := q.Take(chains); n != 0 || err != nil {
						t.Fatalf("took %d, %v before Publish", n, err)
					}
					d.Publish()
					n, err := q.Take(chains)
					if n != 1 || err != nil {
						t.Fatalf("round %d, %q: took %d, %v", round, s.name, n, err)
					}
					c := &chains[0]
					if !same(c.Out, out) || !same(c.In, in) {
						t.Fatalf("round %d, %q: got %v and %v, want %v and %v", round, s.name, lens(c.Out), lens(c.In), s.out, s.in)
					}
					written := uint32(len(in))
					q.Done(c, written)
					if u, ok := d.Reap(); ok {
						t.Fatalf("driver saw %+v before Publish", u)
					}
					q.Publish()
					u, ok := d.Reap()
					if want := (virtqtest.Used{Token: token, Written: written}); !ok || u != want {
						t.Fatalf("driver saw %+v, %t, want %+v", u, ok, want)
					}
					token++
				}
			}
		}
	})
}

// same reports whether a and b are the same memory.
func same(a, b [][]byte) bool {
	return slices.EqualFunc(a, b, func(x, y []byte) bool { return len(x) == len(y) && &x[0] == &y[0] })
}

// Buffers are used in another order than they were made available.
func TestOutOfOrder(t *testing.T) {
	forEach(t, both(8), func(t *testing.T, o virtqtest.Options) {
		ram := virtqtest.NewRAM(t, base, size)
		d := virtqtest.NewDriver(ram, o)
		q := mustNew(t, ram, d.Config())
		chains := make([]virtq.Chain, 3)
		for round := range 20 {
			for i := range 3 {
				var bufs []virtqtest.Buffer
				for range 1 + i {
					bufs = append(bufs, virtqtest.Buffer{Addr: base + size/2, Len: 100})
				}
				d.Add(bufs, i, false)
			}
			d.Publish()
			if n, err := q.Take(chains); n != 3 || err != nil {
				t.Fatalf("round %d: took %d, %v", round, n, err)
			}
			order := [][]int{{2, 0, 1}, {1, 2, 0}, {2, 1, 0}}[round%3]
			for _, i := range order {
				q.Done(&chains[i], 0)
			}
			q.Publish()
			for _, i := range order {
				if u, ok := d.Reap(); !ok || u.Token != i {
					t.Fatalf("round %d: driver saw %+v, %t, want token %d", round, u, ok, i)
				}
			}
		}
	})
}

// With IN_ORDER a batch of buffers that were read costs one entry.
func TestInOrderBatch(t *testing.T) {
	for _, packed := range []bool{false, true} {
		o := virtqtest.Options{Num: 8, Packed: packed, InOrder: true}
		t.Run(o.String(), func(t *testing.T) {
			ram := virtqtest.NewRAM(t, base, size)
			d := virtqtest.NewDriver(ram, o)
			q := mustNew(t, ram, d.Config())
			chains := make([]virtq.Chain, 8)
			token := 0
			for range 11 {
				first := token
				for range 5 {
					d.Add([]virtqtest.Buffer{{Addr: base + size/2, Len: 64}}, token, false)
					token++
				}
				d.Publish()
				ring := ram.Bytes(d.Config().Device+4, 64)
				if packed {
					ring = ram.Bytes(d.Config().Desc, 128)
				}
				before := bytes.Clone(ring)
				n, err := q.Take(chains)
				if n != 5 || err != nil {
					t.Fatalf("took %d, %v", n, err)
				}
				for i := range n {
					q.Done(&chains[i], 0)
				}
				q.Publish()
				step := len(ring) / 8
				changed := 0
				for i := range 8 {
					if !bytes.Equal(before[i*step:(i+1)*step], ring[i*step:(i+1)*step]) {
						changed++
					}
				}
				if changed > 1 {
					t.Fatalf("%d entries changed for one batch", changed)
				}
				for ; first < token; first++ {
					if u, ok := d.Reap(); !ok || u.Token != first {
						t.Fatalf("driver saw %+v, %t, want %d", u, ok, first)
					}
				}
			}
		})
	}
}

// Buffers that were read join a batch also behind others that have an entry of their own.
func TestInOrderMixed(t *testing.T) {
	for _, packed := range []bool{false, true} {
		o := virtqtest.Options{Num: 8, Packed: packed, InOrder: true}
		t.Run(o.String(), func(t *testing.T) {
			ram := virtqtest.NewRAM(t, base, size)
			d := virtqtest.NewDriver(ram, o)
			q := mustNew(t, ram, d.Config())
			chains := make([]virtq.Chain, 8)
			written := []uint32{0, 7, 0, 0, 0, 9, 0}
			for range 9 {
				for i, w := range written {
					d.Add([]virtqtest.Buffer{{Addr: base + size/2, Len: 64, Write: w > 0}}, i, false)
				}
				d.Publish()
				n, err := q.Take(chains)
				if n != len(written) || err != nil {
					t.Fatalf("took %d, %v", n, err)
				}
				for i, w := range written {
					q.Done(&chains[i], w)
				}
				q.Publish()
				for i, w := range written {
					if u, ok := d.Reap(); !ok || u != (virtqtest.Used{Token: i, Written: w}) {
						t.Fatalf("driver saw %+v, %t, want token %d with %d bytes", u, ok, i, w)
					}
				}
			}
		})
	}
}

// Frames are spread over as many buffers as they need, and only the last is not full.
func TestFill(t *testing.T) {
	rows := []struct {
		name    string
		buffers []int // each a chain; the first descriptor of it takes 10 bytes if there are more
		n       int
		merge   bool
		want    []uint32 // written, by buffer; nil if there is no room
	}{
		{"one buffer", []int{100}, 76, false, []uint32{76}},
		{"exactly one buffer", []int{76}, 76, false, []uint32{76}},
		{"too large without merging", []int{76, 76}, 77, false, nil},
		{"two buffers", []int{76, 76}, 77, true, []uint32{76, 1}},
		{"three full buffers", []int{50, 60, 70}, 180, true, []uint32{50, 60, 70}},
		{"not enough", []int{50, 60, 70}, 181, true, nil},
		{"no buffer", nil, 1, true, nil},
		{"large frame", []int{4096, 4096, 4096, 4096}, 16000, true, []uint32{4096, 4096, 4096, 3712}},
		{"only the first descriptor", []int{100}, 10, true, []uint32{10}},
	}
	forEach(t, rings(8), func(t *testing.T, o virtqtest.Options) {
		for _, r := range rows {
			ram := virtqtest.NewRAM(t, base, size)
			d := virtqtest.NewDriver(ram, o)
			q := mustNew(t, ram, d.Config())
			for i, n := range r.buffers {
				at := uint64(base + size/2 + 8192*i)
				d.Add([]virtqtest.Buffer{{Addr: at, Len: 10, Write: true}, {Addr: at + 10, Len: uint32(n - 10), Write: true}}, i, o.Indirect)
			}
			d.Publish()
			before := q.Base()
			parts, buffers, err := q.Fill(r.n, r.merge)
			if err != nil || buffers != len(r.want) {
				t.Fatalf("%s: %d buffers, %v, want %d", r.name, buffers, err, len(r.want))
			}
			if r.want == nil {
				if q.Base() != before || parts != nil || q.Publish() {
					t.Errorf("%s: something was taken", r.name)
				}
				continue
			}
			sum := 0
			for _, p := range parts {
				sum += len(p)
			}
			if sum != r.n {
				t.Errorf("%s: parts of %v have %d bytes, want %d", r.name, lens(parts), sum, r.n)
			}
			q.Publish()
			for i, w := range r.want {
				if u, ok := d.Reap(); !ok || u != (virtqtest.Used{Token: i, Written: w}) {
					t.Errorf("%s: driver saw %+v, %t, want token %d with %d bytes", r.name, u, ok, i, w)
				}
			}
		}
	})
}

// A frame that did not fit takes nothing from those after it.
func TestFillAfterRefusal(t *testing.T) {
	forEach(t, rings(8), func(t *testing.T, o virtqtest.Options) {
		ram := virtqtest.NewRAM(t, base, size)
		d := virtqtest.NewDriver(ram, o)
		q := mustNew(t, ram, d.Config())
		token := 0
		for range 30 {
			for i := range 3 {
				d.Add([]virtqtest.Buffer{{Addr: base + size/2 + uint64(256*i), Len: 100, Write: true}}, token+i, false)
			}
			d.Publish()
			for _, f := range []struct{ n, buffers int }{{100, 1}, {201, 0}, {150, 2}, {1, 0}} {
				if _, n, err := q.Fill(f.n, true); n != f.buffers || err != nil {
					t.Fatalf("%d bytes went to %d buffers, %v, want %d", f.n, n, err, f.buffers)
				}
			}
			q.Publish()
			for _, w := range []uint32{100, 100, 50} {
				if u, ok := d.Reap(); !ok || u != (virtqtest.Used{Token: token, Written: w}) {
					t.Fatalf("driver saw %+v, %t, want token %d with %d bytes", u, ok, token, w)
				}
				token++
			}
		}
	})
}

// The doorbells at every position, in particular where indexes and rounds wrap around.
func TestDoorbells(t *testing.T) {
	for _, num := range []int{1, 4, 8} {
		forEach(t, rings(num), func(t *testing.T, o virtqtest.Options) {
			ram := virtqtest.NewRAM(t, base, size)
			d := virtqtest.NewDriver(ram, o)
			q := mustNew(t, ram, d.Jump(65536-3*num))
			chains := make([]virtq.Chain, num)
			one := []virtqtest.Buffer{{Addr: base + size/2, Len: 64}}

			d.Disarm()
			q.Disarm()
			d.Add(one, 0, false)
			d.Publish()
			q.Take(chains)
			q.Done(&chains[0], 0)
			q.Publish() // the first may ring in any case
			d.Reap()

			for i := range 8 * num {
				// Both asleep: each step rings, once.
				if q.Arm() || d.Arm() {
					t.Fatalf("step %d: something is pending", i)
				}
				if d.Add(one, i, false); !d.Publish() {
					t.Fatalf("step %d: no kick for the first buffer", i)
				}
				if o.EventIdx && num > 1 {
					if d.Add(one, i, false); d.Publish() {
						t.Fatalf("step %d: a kick for the second", i)
					}
				}
				if !q.Arm() {
					t.Fatalf("step %d: Arm does not see what is available", i)
				}
				q.Disarm()
				n, err := q.Take(chains)
				if err != nil {
					t.Fatal(err)
				}
				for j := range n {
					q.Done(&chains[j], 0)
					if call := q.Publish(); call != (j == 0 || !o.EventIdx) {
						t.Fatalf("step %d: call for buffer %d is %t", i, j, call)
					}
				}
				if !d.Arm() {
					t.Fatalf("step %d: the driver's Arm does not see what is used", i)
				}
				d.Disarm()
				for range n {
					d.Reap()
				}

				// Both awake: nothing rings, but EVENT_IDX may once in a round of 65536.
				d.Add(one, i, false)
				kick := d.Publish()
				q.Take(chains)
				q.Done(&chains[0], 0)
				if call := q.Publish(); (kick || call) && !(o.EventIdx && !o.Packed) {
					t.Fatalf("step %d: kick %t, call %t though nobody asked", i, kick, call)
				}
				d.Reap()
			}
		})
	}
}

// A device that is called off for good, then takes over in the middle, goes on where the last one was.
func TestBase(t *testing.T) {
	forEach(t, rings(8), func(t *testing.T, o virtqtest.Options) {
		ram := virtqtest.NewRAM(t, base, size)
		d := virtqtest.NewDriver(ram, o)
		c := d.Config()
		chains := make([]virtq.Chain, 2)
		for i := range 50 {
			q := mustNew(t, ram, c)
			d.Add([]virtqtest.Buffer{{Addr: base + size/2, Len: 64}, {Addr: base + size/2, Len: 64}, {Addr: base + size/2, Len: 64}}, i, false)
			d.Publish()
			if n, err := q.Take(chains); n != 1 || err != nil {
				t.Fatalf("device %d took %d, %v", i, n, err)
			}
			q.Done(&chains[0], 0)
			if !q.Publish() {
				t.Fatalf("device %d does not call although nobody knows where its predecessor was", i)
			}
			if u, ok := d.Reap(); !ok || u.Token != i {
				t.Fatalf("driver saw %+v, %t", u, ok)
			}
			c.Base = q.Base()
			if o.Packed && i%2 == 0 {
				c.Base &= 0xffff // as some front ends hand it on
			}
		}
	})
}

// What the device writes is reported for migration, and nothing in vain.
func TestLog(t *testing.T) {
	forEach(t, append(both(5)[1:], rings(4)...), func(t *testing.T, o virtqtest.Options) {
		ram := virtqtest.NewRAM(t, base, size)
		d := virtqtest.NewDriver(ram, o)
		q := mustNew(t, ram, d.Config())
		logged := map[uint64]bool{}
		q.SetLog(func(gpa uint64, n int) {
			for i := range uint64(n) {
				logged[gpa+i] = true
			}
		})
		chains := make([]virtq.Chain, 1)
		all := ram.Bytes(base, size)
		for i := range 20 {
			at := uint64(base + size/2 + 512*i)
			d.Add([]virtqtest.Buffer{{Addr: at, Len: 64, Write: true}}, 0, false)
			d.Add([]virtqtest.Buffer{{Addr: at + 100, Len: 64, Write: true}}, 1, o.Indirect && i%2 == 0)
			d.Add([]virtqtest.Buffer{{Addr: at + 200, Len: 64}}, 2, false)
			d.Publish()
			before := bytes.Clone(all)
			q.Arm()
			parts, _, err := q.Fill(40, true)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range parts {
				for j := range p {
					p[j]++
				}
			}
			if n, err := q.Take(chains); n != 1 || err != nil {
				t.Fatalf("took %d, %v", n, err)
			}
			chains[0].In[0][63]++
			q.Done(&chains[0], 64)
			q.Take(chains)
			q.Done(&chains[0], 0)
			q.Publish()
			q.Disarm()
			for j := range all {
				if all[j] != before[j] && !logged[base+uint64(j)] {
					t.Fatalf("step %d: byte at %#x was written but not logged", i, base+j)
				}
			}
			for j := uint64(40); j < 64; j++ {
				if logged[at+j] {
					t.Fatalf("step %d: byte at %#x, behind the frame, was logged", i, at+j)
				}
			}
			if len(logged) > 400 {
				t.Fatalf("step %d: %d bytes logged", i, len(logged))
			}
			clear(logged)
			for j, w := range []uint32{40, 64, 0} {
				if u, ok := d.Reap(); !ok || u != (virtqtest.Used{Token: j, Written: w}) {
					t.Fatalf("step %d: driver saw %+v, %t", i, u, ok)
				}
			}
		}
		q.SetLog(nil)
		d.Add([]virtqtest.Buffer{{Addr: base + size/2, Len: 64, Write: true}}, 0, false)
		d.Publish()
		q.Fill(10, false)
		q.Publish()
		if len(logged) != 0 {
			t.Errorf("%d bytes logged after the end of the log", len(logged))
		}
	})
}

// Buffers may lie in several regions and across them; a fragmented guest is served all the same.
func TestRegions(t *testing.T) {
	forEach(t, both(8), func(t *testing.T, o virtqtest.Options) {
		ram := virtqtest.NewRAM(t, base, size)
		const first, n = uint64(base + size), 12 // more than a queue remembers
		for i := range uint64(n) {
			ram.AddRegion(t, first+i*4096, 4096, true, true)
		}
		d := virtqtest.NewDriver(ram, o)
		q := mustNew(t, ram, d.Config())
		chains := make([]virtq.Chain, 1)
		take := func(addr uint64, n uint32, write bool) ([]int, error) {
			d.Add([]virtqtest.Buffer{{Addr: addr, Len: n, Write: write}}, 0, false)
			d.Publish()
			if _, err := q.Take(chains); err != nil {
				return nil, err
			}
			q.Done(&chains[0], 0)
			q.Publish()
			d.Reap()
			if write {
				return lens(chains[0].In), nil
			}
			return lens(chains[0].Out), nil
		}
		for range 2 {
			for i := range uint64(n - 1) {
				for _, write := range []bool{false, true} {
					if got, err := take(first+i*4096+100, 200, write); err != nil || !slices.Equal(got, []int{200}) {
						t.Fatalf("region %d: %v, %v", i, got, err)
					}
					if got, err := take(first+i*4096+4000, 200, write); err != nil || !slices.Equal(got, []int{96, 104}) {
						t.Fatalf("regions %d and %d: %v, %v", i, i+1, got, err)
					}
				}
			}
		}
		if got, err := take(base+size-1, 4096*6+2, false); err != nil || !slices.Equal(got, []int{1, 4096, 4096, 4096, 4096, 4096, 4096, 1}) {
			t.Fatalf("8 pieces: %v, %v", got, err)
		}
		if _, err := take(base+size-1, 4096*7+2, false); !errors.Is(err, virtq.ErrMalformed) {
			t.Fatalf("9 pieces: %v", err)
		}
	})
}

// Case 21: the memory map is replaced while rings run.
func TestCase21Remap(t *testing.T) {
	forEach(t, both(8), func(t *testing.T, o virtqtest.Options) {
		ram := virtqtest.NewRAM(t, base, size)
		const spare = base + 4*size
		ram.AddRegion(t, spare, 4096, true, true)
		d := virtqtest.NewDriver(ram, o)
		c := d.Config()
		q := mustNew(t, ram, c)
		chains := make([]virtq.Chain, 4)
		add := func() {
			d.Add([]virtqtest.Buffer{{Addr: spare, Len: 64}}, 0, false)
			d.Publish()
		}
		for range 5 {
			add()
			if n, err := q.Take(chains); n != 1 || err != nil {
				t.Fatalf("took %d, %v", n, err)
			}
			q.Done(&chains[0], 0)
			q.Publish()
			d.Reap()
			ram.RemoveRegion(spare)
			ram.AddRegion(t, spare, 4096, true, true)
			if err := q.Remap(c.Desc, c.Driver, c.Device); err != nil {
				t.Fatal(err)
			}
		}
		add()
		if q.Take(chains); !ram.Contains(chains[0].Out[0], false) {
			t.Error("a buffer lies in memory that is gone")
		}
		q.Done(&chains[0], 0)
		q.Publish()
		ram.RemoveRegion(spare)
		if err := q.Remap(c.Desc, c.Driver, c.Device); err != nil {
			t.Fatal(err)
		}
		add()
		if _, err := q.Take(chains); !errors.Is(err, virtq.ErrMalformed) {
			t.Errorf("buffer in removed memory: %v", err)
		}
		ram.RemoveRegion(base)
		if err := q.Remap(c.Desc, c.Driver, c.Device); err == nil {
			t.Error("the rings are gone and nobody noticed")
		}
	})
}

// addressRow is a change to a good configuration.
type addressRow struct {
	name string
	from virtq.Config
	edit func(c *virtq.Config)
	want string // in the error; empty if it is fine
}

// tryAddresses has New judge each row.
func tryAddresses(t *testing.T, ram *virtqtest.RAM, rows []addressRow) {
	t.Helper()
	for _, r := range rows {
		c := r.from
		r.edit(&c)
		q, err := virtq.New(ram, c)
		if (q == nil) != (err != nil) || r.want == "" && err != nil || r.want != "" && (err == nil || !strings.Contains(err.Error(), r.want)) {
			t.Errorf("%s: %v, want %q in the error", r.name, err, r.want)
		}
	}
}

// Cases 12 and 23, and the rest of what New refuses.
func TestCase23RingAddresses(t *testing.T) {
	ram := virtqtest.NewRAM(t, base, size)
	ram.AddRegion(t, base+size, 4096, true, true)
	ram.AddRegion(t, base+2*size, 4096, true, false)
	ram.AddRegion(t, base+3*size+8, 4096, true, true) // mapped at the beginning of a page nevertheless
	split := virtqtest.NewDriver(ram, virtqtest.Options{Num: 8, EventIdx: true}).Config()
	packed := virtqtest.NewDriver(ram, virtqtest.Options{Num: 8, Packed: true}).Config()
	tryAddresses(t, ram, []addressRow{
		{"split", split, func(c *virtq.Config) {}, ""},
		{"packed", packed, func(c *virtq.Config) {}, ""},
		{"12 no entries", split, func(c *virtq.Config) { c.Num = 0 }, "0 entries"},
		{"12 not a power of two", split, func(c *virtq.Config) { c.Num = 3 }, "3 entries"},
		{"12 too many entries", split, func(c *virtq.Config) { c.Num = 32769 }, "32769"},
		{"12 too many for packed", packed, func(c *virtq.Config) { c.Num = 32769 }, "32769"},
		{"12 any number for packed", packed, func(c *virtq.Config) { c.Num = 7 }, ""},
		{"base too large", split, func(c *virtq.Config) { c.Base = 0x10000 }, "0x10000"},
		{"base beyond a packed ring", packed, func(c *virtq.Config) { c.Base = 0x8008 }, "0x8008"},
		{"used base beyond a packed ring", packed, func(c *virtq.Config) { c.Base = 0x0008_8000 }, "0x88000"},
		{"23 unaligned table", split, func(c *virtq.Config) { c.Desc += 8 }, "not aligned to 16"},
		{"23 unaligned available ring", split, func(c *virtq.Config) { c.Driver++ }, "not aligned to 2"},
		{"23 unaligned used ring", split, func(c *virtq.Config) { c.Device += 2 }, "not aligned to 4"},
		{"23 unaligned packed ring", packed, func(c *virtq.Config) { c.Desc += 8 }, "not aligned to 16"},
		{"23 unaligned suppression", packed, func(c *virtq.Config) { c.Device += 2 }, "not aligned to 4"},
		{"23 table at the end of the region", split, func(c *virtq.Config) { c.Desc = base + 2*size + 4096 - 16 }, "one piece"},
		{"23 available ring a byte too long", split, func(c *virtq.Config) { c.Driver = base + 2*size + 4096 - 20 }, "one piece"},
		{"23 available ring at the end", split, func(c *virtq.Config) { c.Driver = base + 2*size + 4096 - 22 }, ""},
		{"23 in a gap", split, func(c *virtq.Config) { c.Device = virtqtest.Nowhere }, "0xdead00000000"},
		{"23 across regions", split, func(c *virtq.Config) { c.Desc = base + size - 16 }, "one piece"},
		{"23 used ring in read-only memory", split, func(c *virtq.Config) { c.Device = base + 2*size }, "one piece"},
		{"23 packed ring in read-only memory", packed, func(c *virtq.Config) { c.Desc = base + 2*size }, "one piece"},
		{"23 at the end of the address space", split, func(c *virtq.Config) { c.Desc = 1<<64 - 16 }, "0xfffffffffffffff0"},
		{"23 region that is mapped askew", split, func(c *virtq.Config) { c.Desc = base + 3*size + 16 }, "odd address"},
	})
}

// Case 33: no part of a ring lies in another.
func TestCase33Overlaps(t *testing.T) {
	ram := virtqtest.NewRAM(t, base, size)
	split := virtqtest.NewDriver(ram, virtqtest.Options{Num: 8, EventIdx: true}).Config()
	packed := virtqtest.NewDriver(ram, virtqtest.Options{Num: 8, Packed: true}).Config()
	at := func(desc, driver, device uint64) func(c *virtq.Config) {
		return func(c *virtq.Config) { c.Desc, c.Driver, c.Device = base+desc, base+driver, base+device }
	}
	// The parts of the split ring have 128, 22 and 70 bytes, those of the packed one 128, 4 and 4.
	tryAddresses(t, ram, []addressRow{
		{"one behind the other", split, at(0, 128, 152), ""},
		{"in another order", split, at(96, 224, 24), ""},
		{"used ring in the table", split, at(0, 128, 112), "overlaps used ring at 0x100070"},
		{"table's last byte in the used ring", split, at(0, 256, 124), "overlaps"},
		{"used ring's last bytes in the table", split, at(64, 256, 0), "overlaps"},
		{"used ring over the available ring", split, at(0, 128, 148), "overlaps"},
		{"used ring in front of the available ring, and in it", split, at(0, 196, 128), "overlaps"},
		{"available ring in the table", split, at(0, 126, 152), "overlaps"},
		{"all in one place", split, at(0, 0, 0), "overlaps"},
		{"packed, one behind the other", packed, at(0, 128, 132), ""},
		{"suppression in the ring", packed, at(0, 128, 64), "overlaps"},
		{"driver's suppression in the ring", packed, at(0, 124, 128), "overlaps"},
		{"one suppression for both", packed, at(0, 128, 128), "overlaps"},
	})
}

// malformed runs the malformations of one case.
func malformed(t *testing.T, number string) {
	found := false
	for _, m := range virtqtest.Malformations() {
		if !strings.HasPrefix(m.Name, number) {
			continue
		}
		found = true
		t.Run(fmt.Sprintf("%s/%v", m.Name, m.Options), func(t *testing.T) {
			ram := virtqtest.NewRAM(t, base, size)
			d := virtqtest.NewDriver(ram, m.Options)
			m.Make(d)
			q := mustNew(t, ram, d.Config())
			chains := make([]virtq.Chain, 4)
			act := func() (err error) {
				if m.Receive {
					_, _, err = q.Fill(100, true)
				} else {
					_, err = q.Take(chains)
				}
				return err
			}
			err := act()
			if !errors.Is(err, virtq.ErrMalformed) || !strings.Contains(err.Error(), m.Want) {
				t.Fatalf("%v, want %q in the error", err, m.Want)
			}
			if again := act(); again != err || q.Err() != err {
				t.Errorf("the error does not stay: %v", again)
			}
		})
	}
	if !found {
		t.Fatalf("no malformation for case %s", number)
	}
}

func TestCase25AvailableIndex(t *testing.T) { malformed(t, "25") }
func TestCase26Descriptors(t *testing.T)    { malformed(t, "26") }
func TestCase27Indirect(t *testing.T)       { malformed(t, "27") }
func TestCase28Direction(t *testing.T)      { malformed(t, "28") }

// Case 25: an index that goes back after it was acted on, though not behind where the queue is at first.
func TestCase25IndexGoesBack(t *testing.T) {
	ram := virtqtest.NewRAM(t, base, size)
	d := virtqtest.NewDriver(ram, virtqtest.Options{Num: 8})
	q := mustNew(t, ram, d.Config())
	for i := range 3 {
		d.Add([]virtqtest.Buffer{{Addr: base + size/2, Len: 64}}, i, false)
	}
	d.Publish()
	chains := make([]virtq.Chain, 1)
	if n, err := q.Take(chains); n != 1 || err != nil {
		t.Fatalf("took %d, %v", n, err)
	}
	d.SetIndex(2) // takes one back, which is too late
	for range 2 {
		if n, err := q.Take(chains); n != 1 || err != nil {
			t.Fatalf("took %d, %v of what was seen", n, err)
		}
	}
	if n, err := q.Take(chains); n != 0 || !errors.Is(err, virtq.ErrMalformed) || !strings.Contains(err.Error(), "index 2 is 65535 ahead of 3") {
		t.Errorf("took %d, %v", n, err)
	}
}

// Cases 25 and 31: while the queue works, a guest writes nonsense all over the ring, and takes it back. What the queue
// hands out is memory, and if it finds fault, then with the ring.
func TestCase25RingThatChanges(t *testing.T) {
	forEach(t, both(8), func(t *testing.T, o virtqtest.Options) {
		ram := virtqtest.NewRAM(t, base, size)
		d := virtqtest.NewDriver(ram, o)
		for i := range 8 {
			d.Add([]virtqtest.Buffer{{Addr: base + size/2, Len: 64, Write: i%2 != 0}}, i, false)
		}
		d.Publish()
		c := d.Config()
		ring := ram.Bytes(base, int(max(c.Driver, c.Device)-base)+16)
		good := bytes.Clone(ring)
		var over atomic.Bool
		var writing sync.WaitGroup
		writing.Go(func() {
			random := rand.New(rand.NewPCG(1, 2))
			for !over.Load() {
				at := 2 * random.IntN(len(ring)/2)
				binary.LittleEndian.PutUint16(ring[at:], uint16(random.Uint32()))
				copy(ring[at:], good[at:at+2])
			}
		})
		defer writing.Wait()
		defer over.Store(true)
		chains := make([]virtq.Chain, 4)
		for range 20000 {
			copy(ring, good)
			q, err := virtq.New(ram, c)
			if err != nil {
				t.Fatal(err)
			}
			for i := 0; i < 8 && err == nil; i++ {
				var n int
				n, err = q.Take(chains)
				for j := range chains[:n] {
					for _, p := range chains[j].Out {
						if !ram.Contains(p, false) {
							t.Fatal("a part is outside memory")
						}
					}
					for _, p := range chains[j].In {
						if !ram.Contains(p, true) {
							t.Fatal("a part is outside memory")
						}
					}
					q.Done(&chains[j], 0)
				}
				q.Publish()
				q.Arm()
			}
			if err != nil && !errors.Is(err, virtq.ErrMalformed) {
				t.Fatal(err)
			}
		}
	})
}

// Case 26: a chain through all of the largest ring, or round and round in it, is too long.
func TestCase26LongestChain(t *testing.T) {
	const num = 32768
	for _, packed := range []bool{false, true} {
		ram := virtqtest.NewRAM(t, base, 2*size)
		for i := range num {
			virtqtest.PutDesc(ram.Bytes(base+uint64(16*i), 16), packed, base, 1, virtqtest.Next|1<<7, uint16((i+1)%num))
		}
		c := virtq.Config{Num: num, Packed: packed, Desc: base, Driver: base + 16*num, Device: base + 20*num}
		if packed {
			c.Base = 0x8000
		} else {
			ram.Bytes(c.Driver, 4)[2] = 1 // available: descriptor 0
		}
		chains := make([]virtq.Chain, 1)
		n, err := mustNew(t, ram, c).Take(chains)
		if n != 0 || !errors.Is(err, virtq.ErrMalformed) || !strings.Contains(err.Error(), "more than 1024 descriptors") {
			t.Errorf("packed %t: took %d, %v", packed, n, err)
		}
	}
}

// Case 26: the good chains before a bad one are delivered.
func TestCase26GoodBeforeBad(t *testing.T) {
	forEach(t, both(8), func(t *testing.T, o virtqtest.Options) {
		ram := virtqtest.NewRAM(t, base, size)
		d := virtqtest.NewDriver(ram, o)
		q := mustNew(t, ram, d.Config())
		d.Add([]virtqtest.Buffer{{Addr: base + size/2, Len: 64}}, 0, false)
		d.Add([]virtqtest.Buffer{{Addr: base + size/2, Len: 65}}, 1, false)
		d.Add([]virtqtest.Buffer{{Addr: virtqtest.Nowhere, Len: 66}}, 2, false)
		d.Publish()
		chains := make([]virtq.Chain, 8)
		n, err := q.Take(chains)
		if n != 2 || !errors.Is(err, virtq.ErrMalformed) || len(chains[1].Out[0]) != 65 {
			t.Errorf("took %d, %v", n, err)
		}
	})
}

// Case 27: the flags of entries in a packed ring's table are ignored but for WRITE, as the specification wants.
func TestCase27PackedTableFlags(t *testing.T) {
	ram := virtqtest.NewRAM(t, base, size)
	d := virtqtest.NewDriver(ram, virtqtest.Options{Num: 8, Packed: true, Indirect: true})
	table := ram.Alloc(32, 16)
	virtqtest.PutDesc(ram.Bytes(table, 16), true, base+size/2, 64, virtqtest.Indirect|virtqtest.Next, 77)
	virtqtest.PutDesc(ram.Bytes(table+16, 16), true, base+size/2, 65, virtqtest.Write|virtqtest.Next|1<<7, 78)
	d.SetDesc(0, table, 32, virtqtest.Indirect|virtqtest.Write|1<<7, 5)
	q := mustNew(t, ram, d.Config())
	chains := make([]virtq.Chain, 2)
	n, err := q.Take(chains)
	if n != 1 || err != nil || len(chains[0].Out) != 1 || len(chains[0].In) != 1 {
		t.Errorf("took %d, %v: %v and %v", n, err, lens(chains[0].Out), lens(chains[0].In))
	}
}

// Clause 2.7.5.3.2: direct descriptors may come before the one that refers to a table, whose WRITE flag means nothing.
func TestTableAfterDescriptors(t *testing.T) {
	ram := virtqtest.NewRAM(t, base, size)
	d := virtqtest.NewDriver(ram, virtqtest.Options{Num: 8, Indirect: true})
	table := ram.Alloc(32, 16)
	virtqtest.PutDesc(ram.Bytes(table, 16), false, base+size/2, 65, virtqtest.Next, 1)
	virtqtest.PutDesc(ram.Bytes(table+16, 16), false, base+size/2, 66, virtqtest.Write, 0)
	d.SetDesc(3, base+size/2, 64, virtqtest.Next, 5)
	d.SetDesc(5, table, 32, virtqtest.Indirect|virtqtest.Write, 0)
	d.SetAvailable(0, 3)
	d.SetIndex(1)
	q := mustNew(t, ram, d.Config())
	chains := make([]virtq.Chain, 1)
	n, err := q.Take(chains)
	if n != 1 || err != nil || !slices.Equal(lens(chains[0].Out), []int{64, 65}) || !slices.Equal(lens(chains[0].In), []int{66}) {
		t.Errorf("took %d, %v: %v and %v", n, err, lens(chains[0].Out), lens(chains[0].In))
	}
}

// Case 29: a header in 12 descriptors of one byte each is a chain like any other.
func TestCase29HeaderInBytes(t *testing.T) {
	forEach(t, rings(16), func(t *testing.T, o virtqtest.Options) {
		ram := virtqtest.NewRAM(t, base, size)
		d := virtqtest.NewDriver(ram, o)
		q := mustNew(t, ram, d.Config())
		var bufs []virtqtest.Buffer
		for i := range uint64(12) {
			bufs = append(bufs, virtqtest.Buffer{Addr: base + size/2 + 16*i, Len: 1})
		}
		d.Add(append(bufs, virtqtest.Buffer{Addr: base, Len: 1514}), 0, o.Indirect)
		d.Publish()
		chains := make([]virtq.Chain, 1)
		if n, err := q.Take(chains); n != 1 || err != nil || len(chains[0].Out) != 13 {
			t.Errorf("took %d, %v: %v", n, err, lens(chains[0].Out))
		}
	})
}

// Case 30: buffers of one byte are filled as far as is reasonable, and an empty ring costs nothing.
func TestCase30SmallBuffers(t *testing.T) {
	forEach(t, both(4096), func(t *testing.T, o virtqtest.Options) {
		ram := virtqtest.NewRAM(t, base, 8*size)
		d := virtqtest.NewDriver(ram, o)
		q := mustNew(t, ram, d.Config())
		for range 3 {
			for i := range 4096 {
				d.Add([]virtqtest.Buffer{{Addr: base + 7*size + uint64(i), Len: 1, Write: true}}, i, false)
			}
			d.Publish()
			if _, n, err := q.Fill(64+12, true); n != 76 || err != nil {
				t.Fatalf("a frame went to %d buffers, %v", n, err)
			}
			if _, n, err := q.Fill(1025, true); n != 0 || err != nil {
				t.Fatalf("1025 bytes went to %d buffers, %v", n, err)
			}
			for range 4 {
				if _, n, err := q.Fill(1005, true); n != 1005 || err != nil {
					t.Fatalf("1005 bytes went to %d buffers, %v", n, err)
				}
			}
			if _, n, err := q.Fill(1, true); n != 0 || err != nil {
				t.Fatalf("one byte too many went to %d buffers, %v", n, err)
			}
			q.Publish()
			for range 4096 {
				if u, ok := d.Reap(); !ok || u.Written != 1 {
					t.Fatalf("driver saw %+v, %t", u, ok)
				}
			}
		}
	})
}

// Case 31: a guest that rewrites its descriptors after Take changes nothing.
func TestCase31Rewritten(t *testing.T) {
	forEach(t, both(8), func(t *testing.T, o virtqtest.Options) {
		ram := virtqtest.NewRAM(t, base, size)
		d := virtqtest.NewDriver(ram, o)
		q := mustNew(t, ram, d.Config())
		d.Add([]virtqtest.Buffer{{Addr: base + size/2, Len: 64}}, 9, false)
		d.Publish()
		chains := make([]virtq.Chain, 1)
		q.Take(chains)
		clear(ram.Bytes(d.Config().Desc, 128))
		if !same(chains[0].Out, [][]byte{ram.Bytes(base+size/2, 64)}) {
			t.Error("the chain changed")
		}
		q.Done(&chains[0], 0)
		q.Publish()
		if u, ok := d.Reap(); !ok || u.Token != 9 {
			t.Errorf("driver saw %+v, %t", u, ok)
		}
	})
}

// Nothing on the path of a frame allocates.
func TestAllocs(t *testing.T) {
	forEach(t, rings(64), func(t *testing.T, o virtqtest.Options) {
		ram := virtqtest.NewRAM(t, base, size)
		tx, rx := virtqtest.NewDriver(ram, o), virtqtest.NewDriver(ram, o)
		from, to := mustNew(t, ram, tx.Config()), mustNew(t, ram, rx.Config())
		out := []virtqtest.Buffer{{Addr: base + size/2, Len: 12}, {Addr: base + size/2 + 12, Len: 900}}
		in := []virtqtest.Buffer{{Addr: base + size/2 + 4096, Len: 512, Write: true}}
		chains := make([]virtq.Chain, 8)
		if n := testing.AllocsPerRun(100, func() {
			for range 8 {
				tx.Add(out, 0, o.Indirect)
				rx.Add(in, 0, false)
				rx.Add(in, 0, false)
			}
			tx.Publish()
			rx.Publish()
			n, err := from.Take(chains)
			if n != 8 || err != nil {
				t.Fatalf("took %d, %v", n, err)
			}
			for i := range n {
				if _, b, err := to.Fill(912, true); b != 2 || err != nil {
					t.Fatalf("filled %d, %v", b, err)
				}
				from.Done(&chains[i], 0)
			}
			to.Publish()
			from.Publish()
			from.Arm()
			from.Disarm()
			for range 8 {
				tx.Reap()
				rx.Reap()
				rx.Reap()
			}
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	})
}

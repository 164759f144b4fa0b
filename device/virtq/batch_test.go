package virtq_test

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"polder/device/virtq"
	"polder/device/virtq/virtqtest"
)

// Frames get a buffer each, up to the first that is not so simple; that one is for Fill.
func TestFillEach(t *testing.T) {
	rows := []struct {
		name    string
		buffers [][]int // lengths of the descriptors of each
		table   bool    // they are in indirect tables
		frames  []int
		want    int
	}{
		{"no buffer", nil, false, []int{60}, 0},
		{"a buffer each", [][]int{{100}, {60}, {70}}, false, []int{60, 60, 60}, 3},
		{"more buffers than frames", [][]int{{100}, {60}, {70}}, false, []int{60}, 1},
		{"more frames than buffers", [][]int{{100}, {60}}, false, []int{60, 60, 60}, 2},
		{"one that is too small", [][]int{{100}, {59}, {70}}, false, []int{60, 60, 60}, 1},
		{"two descriptors", [][]int{{100}, {12, 100}, {70}}, false, []int{60, 60, 60}, 1},
		{"a table", [][]int{{100}}, true, []int{60}, 0},
	}
	forEach(t, rings(8), func(t *testing.T, o virtqtest.Options) {
		for _, r := range rows {
			if r.table && !o.Indirect {
				continue
			}
			ram := virtqtest.NewRAM(t, base, size)
			d := virtqtest.NewDriver(ram, o)
			q := mustNew(t, ram, d.Config())
			add := func(token int, table bool, lens ...int) {
				var bufs []virtqtest.Buffer
				at := uint64(base + size/2 + 8192*token)
				for _, n := range lens {
					bufs = append(bufs, virtqtest.Buffer{Addr: at, Len: uint32(n), Write: true})
					at += uint64(n)
				}
				d.Add(bufs, token, table)
			}
			add(0, false, 10) // shows the queue where the memory is
			d.Publish()
			q.Fill(10, false)
			for i, lens := range r.buffers {
				add(1+i, r.table, lens...)
			}
			d.Publish()
			bufs := make([][]byte, len(r.frames))
			n := q.FillEach(r.frames, bufs)
			if n != r.want {
				t.Errorf("%s: %d frames have a buffer, want %d", r.name, n, r.want)
			}
			for i := range n {
				if want := ram.Bytes(base+size/2+uint64(8192*(1+i)), r.frames[i]); !same(bufs[i:i+1], [][]byte{want}) {
					t.Errorf("%s: frame %d has %d bytes of memory that is not its buffer's", r.name, i, len(bufs[i]))
				}
			}
			if n == len(bufs) || n == len(r.buffers) {
				n-- // there is none left
			} else if _, buffers, err := q.Fill(r.frames[n], true); buffers == 0 || err != nil {
				t.Errorf("%s: %d buffers for the next frame, %v", r.name, buffers, err)
			}
			q.Publish()
			for token := range 1 + n + 1 {
				if u, ok := d.Reap(); !ok || u.Token != token || token > 0 && int(u.Written) > r.frames[token-1] {
					t.Errorf("%s: driver saw %+v, %t, want token %d", r.name, u, ok, token)
				}
			}
		}
	})
}

// All that was taken is given back at once, also where a buffer has a part to write that nothing was written to.
func TestDoneAll(t *testing.T) {
	forEach(t, rings(8), func(t *testing.T, o virtqtest.Options) {
		ram := virtqtest.NewRAM(t, base, size)
		d := virtqtest.NewDriver(ram, o)
		q := mustNew(t, ram, d.Config())
		chains := make([]virtq.Chain, 4)
		for round := range 20 {
			for token := range 4 {
				bufs := []virtqtest.Buffer{{Addr: base + size/2, Len: 20}}
				if round >= 10 && token == 2 {
					bufs = append(bufs, virtqtest.Buffer{Addr: base + size/2 + 20, Len: 10, Write: true})
				}
				d.Add(bufs, token, false)
			}
			d.Publish()
			if n, err := q.Take(chains); n != 4 || err != nil {
				t.Fatalf("took %d, %v", n, err)
			}
			q.DoneAll(nil)
			q.DoneAll(chains[:1])
			q.DoneAll(chains[1:])
			if _, ok := d.Reap(); ok {
				t.Fatal("the driver saw something before Publish")
			}
			q.Publish()
			for token := range 4 {
				if u, ok := d.Reap(); !ok || u != (virtqtest.Used{Token: token}) {
					t.Fatalf("round %d: driver saw %+v, %t, want token %d", round, u, ok, token)
				}
			}
		}
	})
}

// Of the longest chains, one is taken at a time.
func TestTakeLongChains(t *testing.T) {
	const num, parts = 64, 1024
	for _, packed := range []bool{false, true} {
		ram := virtqtest.NewRAM(t, base, size)
		c := virtq.Config{Num: num, Packed: packed, Indirect: true, Desc: base, Driver: base + 0x1000, Device: base + 0x2000}
		if packed {
			c.Base = 0x8000
		}
		for i := range num {
			virtqtest.PutDesc(ram.Bytes(base+uint64(16*i), 16), packed, base+0x4000, 16*parts, virtqtest.Indirect|1<<7, uint16(i))
			binary.LittleEndian.PutUint16(ram.Bytes(base+0x1004+uint64(2*i), 2), uint16(i))
		}
		ram.Bytes(c.Driver, 4)[2] = num
		if packed {
			clear(ram.Bytes(c.Driver, 4))
		}
		for i := range parts {
			flags := uint16(virtqtest.Next)
			if i == parts-1 {
				flags = 0
			}
			virtqtest.PutDesc(ram.Bytes(base+0x4000+uint64(16*i), 16), packed, base+0x9000, 1, flags, uint16(i+1))
		}
		q := mustNew(t, ram, c)
		chains := make([]virtq.Chain, num)
		for i := range num {
			if n, err := q.Take(chains); n != 1 || err != nil || len(chains[0].Out) != parts {
				t.Fatalf("packed %t, chain %d: took %d, %v, with %d parts", packed, i, n, err, len(chains[0].Out))
			}
			q.DoneAll(chains[:1])
			q.Publish()
		}
		if n, err := q.Take(chains); n != 0 || err != nil {
			t.Errorf("packed %t: took %d, %v from an empty ring", packed, n, err)
		}
	}
}

// hooked is memory that something happens to whenever a new piece of it is looked for.
type hooked struct {
	*virtqtest.RAM
	hook func(gpa uint64)
}

func (m *hooked) Window(gpa uint64, n int, write bool) []byte {
	m.hook(gpa)
	return m.RAM.Window(gpa, n, write)
}

// A guest makes the descriptors of a packed ring available anew while the device is still taking them.
func TestTakeRoundAndRound(t *testing.T) {
	const pieces = 6
	for _, descs := range []int{1, 2} { // of each chain, in a ring of as many
		ram := virtqtest.NewRAM(t, base, size)
		for i := range pieces {
			ram.AddRegion(t, uint64(1+i)<<32, 4096, true, true)
		}
		give := func(i int) {
			flags := []uint16{1 << 7, 1 << 15}[i%2] // available in this round, and in the next
			for j := descs - 1; j >= 0; j-- {
				more := uint16(0)
				if j < descs-1 {
					more = virtqtest.Next
				}
				virtqtest.PutDesc(ram.Bytes(base+uint64(16*j), 16), true, uint64(1+i%pieces)<<32, 64, flags|more, 0)
			}
		}
		m := &hooked{ram, func(gpa uint64) {
			if i := int(gpa >> 32); i >= 1 && i < pieces && gpa&0xfff == 0 {
				give(i)
			}
		}}
		q := mustNew(t, m, virtq.Config{
			Num: uint16(descs), Packed: true, InOrder: true, Desc: base, Driver: base + 0x1000, Device: base + 0x2000, Base: 0x8000,
		})
		chains := make([]virtq.Chain, 64)
		for taken := 0; taken < 3*pieces; {
			give(taken)
			n, err := q.Take(chains)
			taken += n
			if n > 1 {
				t.Errorf("took %d chains of %d descriptors from a ring of as many", n, descs)
			}
			q.DoneAll(chains[:n])
			q.Publish()
			if err != nil {
				break
			}
		}
	}
}

// DPDK's driver marks entries of a packed ring's indirect tables as to be written although it sends them.
func TestSendsTable(t *testing.T) {
	for _, sends := range []bool{false, true} {
		ram := virtqtest.NewRAM(t, base, size)
		d := virtqtest.NewDriver(ram, virtqtest.Options{Num: 8, Packed: true, Indirect: true})
		c := d.Config()
		c.Sends = sends
		q := mustNew(t, ram, c)
		d.Add([]virtqtest.Buffer{{Addr: base + size/2, Len: 12, Write: true}, {Addr: base + size/2 + 64, Len: 60}}, 0, true)
		d.Publish()
		chains := make([]virtq.Chain, 1)
		n, err := q.Take(chains)
		if !sends {
			if n != 0 || !errors.Is(err, virtq.ErrMalformed) {
				t.Errorf("took %d, %v from a queue that does not only send", n, err)
			}
			continue
		}
		if n != 1 || err != nil || !slices.Equal(lens(chains[0].Out), []int{12, 60}) || len(chains[0].In) != 0 {
			t.Errorf("took %d, %v: %v to read and %v to write", n, err, lens(chains[0].Out), lens(chains[0].In))
		}
	}
}

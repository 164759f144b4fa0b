package virtq_test

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"polder/device/virtq"
	"polder/device/virtq/virtqtest"
)

// modelChain is a buffer as the model knows it.
type modelChain struct {
	token   int
	out, in []int // lengths
	descs   int   // of the ring
	written uint32
}

// model is what a queue is about: buffers that move from one list to the next.
type model struct {
	added, available, taken, done, used []modelChain
}

// FuzzSplit plays a program of both halves of a split ring against a model of four lists.
func FuzzSplit(f *testing.F) { fuzzProgram(f, false) }

// FuzzPacked does so for a packed ring.
func FuzzPacked(f *testing.F) { fuzzProgram(f, true) }

// fuzzProgram: the first bytes choose features, size and position; then each step is two bytes, what to do and a detail.
func fuzzProgram(f *testing.F, packed bool) {
	f.Add([]byte{7, 3, 255, 0, 0x21, 1, 0, 2, 4, 3, 0, 4, 0, 5, 0})
	f.Add([]byte{2, 2, 3, 0, 1, 0, 2, 0, 0x83, 1, 0, 2, 9, 3, 1, 3, 0, 4, 0, 5, 0, 5, 0, 5, 0})
	f.Add([]byte{1, 3, 0, 0, 0x10, 0, 0x20, 0, 0x30, 1, 0, 7, 0x82, 4, 0, 5, 0, 5, 0, 5, 0})
	f.Add([]byte{1, 3, 0, 0, 1, 0, 2, 0, 1, 1, 0, 2, 3, 11, 2, 4, 0, 11, 1, 4, 0, 5, 0, 5, 0, 5, 0})
	f.Add([]byte{2, 3, 0, 0, 0x10, 1, 0, 7, 0, 0, 0x10, 0, 0x10, 0, 0x20, 1, 0, 12, 0, 7, 0, 4, 0, 5, 0, 5, 0, 5, 0, 5, 0})
	f.Add([]byte{5, 1, 254, 6, 0, 8, 0, 0, 1, 1, 0, 2, 1, 3, 0, 4, 0, 6, 1, 9, 0, 5, 0, 10, 0})
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) < 3 {
			return
		}
		o := virtqtest.Options{Packed: packed, InOrder: p[0]&1 != 0, EventIdx: p[0]&2 != 0, Indirect: p[0]&4 != 0}
		o.Num = 1 << (p[1] % 5)
		if packed {
			o.Num = 1 + int(p[1]%20)
		}
		ram := virtqtest.NewRAM(t, base, size/4)
		d := virtqtest.NewDriver(ram, o)
		c := d.Jump(65535 &^ int(p[2]))
		q := mustNew(t, ram, c)
		play(t, ram, d, q, p[3:])
	})
}

func play(t *testing.T, ram *virtqtest.RAM, d *virtqtest.Driver, q *virtq.Queue, program []byte) {
	const buffers = base + size/8
	var (
		o       = d.Options()
		m       model
		room    = o.Num
		token   int
		chains  []virtq.Chain // of m.taken
		kick    bool          // the device sleeps: what is published next must ring
		call    bool          // the driver does
		scratch = make([]virtq.Chain, 8)
	)
	for step := 0; len(program) >= 2; step, program = step+1, program[2:] {
		x := int(program[1])
		switch program[0] % 13 {
		case 0: // the driver adds a buffer: x is how many parts to read and to write, and whether in a table
			c := modelChain{token: token}
			var bufs []virtqtest.Buffer
			for i := range x & 3 {
				c.out = append(c.out, 1+token%7+i)
				bufs = append(bufs, virtqtest.Buffer{Addr: buffers + uint64(16*i), Len: uint32(1 + token%7 + i)})
			}
			for i := range x >> 4 & 3 {
				c.in = append(c.in, 1+token%5+i)
				bufs = append(bufs, virtqtest.Buffer{Addr: buffers + 256 + uint64(16*i), Len: uint32(1 + token%5 + i), Write: true})
			}
			c.descs = len(bufs)
			indirect := o.Indirect && x&0x80 != 0
			if indirect {
				c.descs = min(1, len(bufs))
			}
			if fits := c.descs > 0 && c.descs <= room; d.Add(bufs, token, indirect) != fits {
				t.Fatalf("step %d: Add of %d descriptors with %d free: %t", step, c.descs, room, !fits)
			} else if fits {
				room -= c.descs
				token++
				m.added = append(m.added, c)
			}
		case 1: // and shows what it added
			got := d.Publish()
			if kick && len(m.added) > 0 {
				if !got {
					t.Fatalf("step %d: the device sleeps and is not kicked", step)
				}
				kick = false
			}
			m.available, m.added = append(m.available, m.added...), nil
		case 2: // the device takes up to x
			x = min(x%9, len(scratch))
			n, err := q.Take(scratch[:x])
			if err != nil || n != min(x, len(m.available)) {
				t.Fatalf("step %d: took %d, %v, want %d of %d", step, n, err, x, len(m.available))
			}
			for i, c := range scratch[:n] {
				if w := m.available[i]; !slices.Equal(lens(c.Out), w.out) || !slices.Equal(lens(c.In), w.in) {
					t.Fatalf("step %d: chain %d is %v and %v, want %v and %v", step, i, lens(c.Out), lens(c.In), w.out, w.in)
				}
				c.Out, c.In = slices.Clone(c.Out), slices.Clone(c.In)
				chains = append(chains, c)
			}
			m.taken, m.available = append(m.taken, m.available[:n]...), m.available[n:]
		case 3: // and is through with one
			if len(m.taken) == 0 {
				continue
			}
			i := 0
			if !o.InOrder {
				i = x % len(m.taken)
			}
			c := m.taken[i]
			if len(c.in) > 0 {
				c.written = uint32(x>>4) % 4
			}
			q.Done(&chains[i], c.written)
			m.done = append(m.done, c)
			m.taken, chains = slices.Delete(m.taken, i, i+1), slices.Delete(chains, i, i+1)
		case 4: // and shows it
			got := q.Publish()
			if call && len(m.done) > 0 {
				if !got {
					t.Fatalf("step %d: the driver sleeps and is not called", step)
				}
				call = false
			}
			if got && len(m.done) == 0 {
				t.Fatalf("step %d: a call for nothing", step)
			}
			m.used, m.done = append(m.used, m.done...), nil
		case 5: // the driver takes one back
			u, ok := d.Reap()
			if ok != (len(m.used) > 0) {
				t.Fatalf("step %d: driver saw %+v, %t; %d are used", step, u, ok, len(m.used))
			}
			if !ok {
				continue
			}
			if w := m.used[0]; u != (virtqtest.Used{Token: w.token, Written: w.written}) {
				t.Fatalf("step %d: driver saw %+v, want %+v", step, u, w)
			}
			room += m.used[0].descs
			m.used = m.used[1:]
		case 6: // the device goes to sleep
			if pending := q.Arm(); pending != (len(m.available) > 0) {
				t.Fatalf("step %d: Arm: pending %t, %d are available", step, pending, len(m.available))
			} else {
				kick = !pending
			}
		case 7: // the device receives a frame of x bytes
			if o.InOrder && len(m.taken) > 0 {
				continue
			}
			n, merge := 1+x&0x7f, x&0x80 != 0
			want, sum := 0, 0
			for want < len(m.available) && sum < n && len(m.available[want].out) == 0 {
				for _, p := range m.available[want].in {
					sum += p
				}
				want++
			}
			if want < len(m.available) && sum < n && (merge || want == 0) {
				continue // it would meet a buffer to send
			}
			if sum < n || !merge && want > 1 {
				want = 0
			}
			parts, got, err := q.Fill(n, merge)
			if got != want || err != nil {
				t.Fatalf("step %d: %d bytes went to %d buffers, %v, want %d", step, n, got, err, want)
			}
			all := 0
			for _, p := range parts {
				all += len(p)
			}
			if want > 0 && all != n {
				t.Fatalf("step %d: parts of %d bytes for %d", step, all, n)
			}
			for _, c := range m.available[:want] {
				for _, p := range c.in {
					c.written += uint32(min(p, n))
					n -= min(p, n)
				}
				m.done = append(m.done, c)
			}
			m.available = m.available[want:]
		case 8: // the driver goes to sleep
			if pending := d.Arm(); pending != (len(m.used) > 0) {
				t.Fatalf("step %d: driver's Arm: pending %t, %d are used", step, pending, len(m.used))
			} else {
				call = !pending
			}
		case 9: // both wake up
			q.Disarm()
			d.Disarm()
			kick, call = false, false
		case 10: // another device takes over
			if len(m.taken) > 0 || len(m.done) > 0 {
				continue
			}
			c := d.Config()
			c.Base = q.Base()
			q = mustNew(t, ram, c)
		case 11: // the device is through with some, and wrote nothing
			n := min(len(m.taken), x%4)
			q.DoneAll(chains[:n])
			m.done = append(m.done, m.taken[:n]...)
			m.taken, chains = slices.Delete(m.taken, 0, n), slices.Delete(chains, 0, n)
		case 12: // the device receives frames of x bytes
			if o.InOrder && len(m.taken) > 0 {
				continue
			}
			n, simple := 1+x&0x7f, 0
			for _, c := range m.available {
				if len(c.out) > 0 || len(c.in) > 1 || c.in[0] < n {
					break
				}
				simple++
			}
			bufs := make([][]byte, 3)
			got := q.FillEach([]int{n, n, n}, bufs)
			if got > simple {
				t.Fatalf("step %d: %d frames of %d bytes went to a buffer each; only %d are of that kind", step, got, n, simple)
			}
			for i := range got {
				c := m.available[i]
				if len(bufs[i]) != n {
					t.Fatalf("step %d: a part of %d bytes for %d", step, len(bufs[i]), n)
				}
				c.written = uint32(n)
				m.done = append(m.done, c)
			}
			m.available = m.available[got:]
		}
	}
}

// FuzzRingImage lets a device loose on arbitrary ring memory. It does not panic, does not touch what is outside, and does not
// work for ever.
func FuzzRingImage(f *testing.F) {
	const (
		num   = 16
		image = 16*num + 6 + 2*num + 6 + 8*num
	)
	loop := make([]byte, image)
	for i := range num {
		virtqtest.PutDesc(loop[16*i:], false, uint64(i*64), 64, virtqtest.Next, uint16(i+1)%num)
	}
	copy(loop[16*num:], []byte{0, 0, 16, 0, 0, 0, 3, 0})
	f.Add(uint8(0), uint16(0), loop)
	f.Add(uint8(0x2f), uint16(0), loop)
	small := make([]byte, image)
	for i := range num {
		virtqtest.PutDesc(small[16*i:], true, uint64(i*64), 12, virtqtest.Write|1<<7, uint16(i))
	}
	f.Add(uint8(0x31), uint16(0x8000), small)
	f.Add(uint8(0x71), uint16(0x8000), small)
	f.Add(uint8(0x11), uint16(0x8000), small)

	f.Fuzz(func(t *testing.T, how uint8, start uint16, data []byte) {
		// Memory from address 0 on, so that short numbers are addresses; some read-only, and a gap between them.
		ram := virtqtest.NewRAM(t, 0, 4096)
		ram.AddRegion(t, 4096, 4096, true, false)
		ram.AddRegion(t, 16384, 4096, true, true)
		mem := ram.Bytes(0, image)
		copy(mem, data)
		c := virtq.Config{
			Num: num, Packed: how&1 != 0, EventIdx: how&2 != 0, InOrder: how&4 != 0, Indirect: how&8 != 0,
			Desc: 0, Driver: 16 * num, Device: 16*num + 40, Base: uint32(start),
		}
		if how&0x20 != 0 { // addresses and lengths that are likely to be good
			for i := range num {
				d := mem[16*i:]
				binary.LittleEndian.PutUint64(d, binary.LittleEndian.Uint64(d)&0x7fff)
				binary.LittleEndian.PutUint32(d[8:], binary.LittleEndian.Uint32(d[8:])&0x3ff)
			}
		}
		if c.Packed {
			c.Driver = 16*num + 36
		}
		q, err := virtq.New(ram, c)
		if err != nil {
			return // a base beyond the ring
		}
		if how&0x40 != 0 {
			q.SetLog(func(gpa uint64, n int) {
				if ram.Window(gpa, n, true) == nil {
					t.Fatalf("%#x+%#x was written", gpa, n)
				}
			})
		}
		chains := make([]virtq.Chain, 4)
		for i := range 64 {
			var err error
			if how&0x10 != 0 {
				bufs := make([][]byte, 2)
				for _, p := range bufs[:q.FillEach([]int{1 + i*37, 1 + i}, bufs)] {
					if !ram.Contains(p, true) {
						t.Fatal("a part is outside memory")
					}
				}
				var parts [][]byte
				var n int
				parts, n, err = q.Fill(1+i*37, i&1 != 0)
				sum := 0
				for _, p := range parts {
					if sum += len(p); !ram.Contains(p, true) {
						t.Fatal("a part is outside memory")
					}
				}
				if n > 0 && sum != 1+i*37 || n == 0 && sum != 0 {
					t.Fatalf("%d buffers of %d bytes", n, sum)
				}
			} else {
				var n int
				n, err = q.Take(chains)
				for j := range n {
					c := &chains[j]
					if len(c.Out)+len(c.In) == 0 || len(c.Out)+len(c.In) > 2*1024 {
						t.Fatalf("a chain of %d parts to read, %d to write", len(c.Out), len(c.In))
					}
					for _, p := range c.Out {
						if !ram.Contains(p, false) {
							t.Fatal("a part is outside memory")
						}
					}
					for _, p := range c.In {
						if !ram.Contains(p, true) {
							t.Fatal("a part is outside memory")
						}
					}
					q.Done(c, uint32(len(c.In)))
				}
			}
			q.Publish()
			if err != nil {
				if !errors.Is(err, virtq.ErrMalformed) {
					t.Fatal(err)
				}
				return
			}
			if i&3 == 3 {
				q.Arm()
				q.Disarm()
			}
			q.Base()
		}
	})
}

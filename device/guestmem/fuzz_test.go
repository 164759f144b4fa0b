package guestmem

import (
	"bytes"
	"errors"
	"testing"
)

// cell is one unit of guest memory in the model of FuzzMap.
type cell struct {
	region      int // which Map call shows it, 0 is none
	file        int // which unit of the file, -1 is none
	read, write bool
}

// cellAt returns the cell that is off bytes behind the start of cell i, nil if there is none, and the offset in it.
func cellAt(cells []cell, i, off int) (*cell, int) {
	i += off / unit
	if i >= len(cells) {
		return nil, 0
	}
	return &cells[i], off % unit
}

// unit is what the programs of FuzzMap count in.
const unit = page

// FuzzMap plays a program of regions that come and go against a model that keeps every byte by itself. Each step is four
// bytes: what to do, an address, a size and a detail, in units that make overlaps and edges likely.
func FuzzMap(f *testing.F) {
	f.Add([]byte{0, 0, 8, 7, 0, 8, 8, 0x1f, 2, 6, 4, 1, 3, 6, 4, 0, 1, 0, 8, 0})
	f.Add([]byte{0, 0, 16, 7, 1, 0, 0, 0, 0, 0, 4, 7, 0, 4, 4, 3, 0, 8, 8, 0x47, 2, 2, 12, 9, 3, 2, 12, 0})
	f.Add([]byte{0, 255, 1, 7, 0, 254, 1, 0x87, 2, 254, 2, 0, 2, 255, 2, 1, 1, 254, 2, 0})

	const (
		units = 256 // of address space, at its very top
		base  = 1<<64 - units*unit
	)
	ram := memfd(f, 16*unit)

	f.Fuzz(func(t *testing.T, program []byte) {
		var (
			m     = newMap(t)
			model [units]cell
			store = make([]byte, 16*unit) // what the file must hold
			calls int
		)
		if _, err := ram.WriteAt(store, 0); err != nil {
			t.Fatal(err)
		}
		for ; len(program) >= 4; program = program[4:] {
			op, at, n, x := program[0]%4, int(program[1]), int(program[2]), program[3]
			gpa, size := base+uint64(at)*unit, uint64(n)*unit
			fits := n > 0 && at+n <= units
			cells := model[at:min(at+n, units)]
			switch op {
			case 0: // map
				r := Region{GPA: gpa, Size: size, Read: x&1 != 0, Write: x&2 != 0}
				if x&4 != 0 {
					r.File, r.Offset = ram, uint64(x>>3%16)*unit
				}
				ok := fits && (r.File == nil || r.Offset+size <= 16*unit)
				for _, c := range cells {
					ok = ok && c.region == 0
				}
				if err := m.Map(r); (err == nil) != ok {
					t.Fatalf("Map(%+v) = %v, want ok %t", r, err, ok)
				}
				if !ok {
					continue
				}
				calls++
				for i := range cells {
					cells[i] = cell{region: calls, file: -1, read: r.Read, write: r.Write}
					if r.File != nil {
						cells[i].file = int(r.Offset/unit) + i
					}
				}
			case 1: // unmap
				ok, some := fits, false
				for _, c := range cells {
					some = some || c.region != 0
				}
				if ok && at > 0 && cells[0].region != 0 && model[at-1].region == cells[0].region {
					ok = false
				}
				if ok && at+n < units && cells[n-1].region != 0 && model[at+n].region == cells[n-1].region {
					ok = false
				}
				if err := m.Unmap(gpa, size); (err == nil) != (ok && some) {
					t.Fatalf("Unmap(%#x, %#x) = %v, want ok %t", gpa, size, err, ok && some)
				}
				if ok {
					clear(cells)
				}
			case 2: // write, off the edges of a unit
				gpa += uint64(x)
				p := bytes.Repeat([]byte{x, x + 1, x + 2}, n*100)
				ok := true
				for i := range p {
					c, off := cellAt(model[:], at, int(x)+i)
					if c == nil || c.file < 0 || !c.write {
						ok = false
						break
					}
					store[c.file*unit+off] = p[i]
				}
				if err := m.Write(gpa, p); (err == nil) != ok || err != nil && !errors.Is(err, ErrUnmapped) {
					t.Fatalf("Write(%#x, %d bytes) = %v, want ok %t", gpa, len(p), err, ok)
				}
			case 3: // read
				gpa += uint64(x)
				p, want := make([]byte, n*300), make([]byte, 0, n*300)
				ok, region, one := true, 0, true
				for i := range p {
					c, off := cellAt(model[:], at, int(x)+i)
					if c == nil || c.file < 0 || !c.read {
						ok = false
						break
					}
					one = one && (i == 0 || c.region == region)
					region = c.region
					want = append(want, store[c.file*unit+off])
				}
				if err := m.Read(gpa, p); (err == nil) != ok || ok && !bytes.Equal(p, want) {
					t.Fatalf("Read(%#x, %d bytes) = %v, want ok %t; equal %t", gpa, len(p), err, ok, bytes.Equal(p, want))
				}
				if w := m.Window(gpa, len(p), false); (w != nil) != (ok && one && n > 0) || w != nil && !bytes.Equal(w, want) {
					t.Fatalf("Window(%#x, %d) has %d bytes, want all %t", gpa, len(p), len(w), ok && one && n > 0)
				}
			}
		}
	})
}

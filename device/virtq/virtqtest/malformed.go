package virtqtest

// Malformation is a way for a driver to break the rules. After Make, a device that takes the next buffer, or
// with Receive wants to write to it, must find fault with the ring.
type Malformation struct {
	Name    string
	Options Options
	Receive bool
	Make    func(d *Driver)
	Want    string // in the error: the value that is wrong
}

// entry is a descriptor; last is next in a split ring, the buffer id in a packed one.
type entry struct {
	addr  uint64
	n     uint32
	flags uint16
	last  uint16
}

// expose makes descriptors available from the beginning of an unused ring.
func (d *Driver) expose(ring ...entry) {
	for i, e := range ring {
		if d.o.Packed {
			e.flags |= avail
		}
		d.SetDesc(i, e.addr, e.n, e.flags, e.last)
	}
	if !d.o.Packed {
		d.SetAvailable(0, 0)
		d.SetIndex(1)
	}
}

// tableOf writes an indirect table and returns a descriptor for it.
func (d *Driver) tableOf(table ...entry) entry {
	gpa := d.ram.Alloc(16*len(table), 16)
	for i, e := range table {
		PutDesc(d.ram.Bytes(gpa+uint64(16*i), 16), d.o.Packed, e.addr, e.n, e.flags, e.last)
	}
	return entry{gpa, uint32(16 * len(table)), Indirect, 0}
}

// data returns the address of 64 bytes.
func (d *Driver) data() uint64 { return d.ram.Alloc(64, 64) }

// Nowhere is an address at which a RAM for Malformations has no memory.
const Nowhere = 0xdead_0000_0000

// Malformations returns every kind of ring that a device must not accept. The names start
// with the number of the case in the project's list of hostile front ends.
func Malformations() []Malformation {
	split := Options{Num: 8, Indirect: true}
	packed := Options{Num: 8, Packed: true, Indirect: true}
	plain := func(o Options) Options { o.Indirect = false; return o }

	list := []Malformation{
		{"25 available index jumps", split, false, func(d *Driver) { d.SetIndex(9) }, "index 9 is 9 ahead of 0"},
		{"25 available index goes backwards", split, false, func(d *Driver) { d.SetIndex(0xffff) }, "index 65535 is 65535 ahead"},
		{"26 head beyond the table", split, false, func(d *Driver) { d.SetAvailable(0, 8); d.SetIndex(1) }, "descriptor 8 in a table of 8"},
		{"26 head of a buffer to receive into", split, true, func(d *Driver) { d.SetAvailable(0, 0xffff); d.SetIndex(1) }, "descriptor 65535 in a table of 8"},
		{"26 next beyond the table", split, false, func(d *Driver) { d.expose(entry{d.data(), 64, Next, 8}) }, "descriptor 8 in a table of 8"},
		{"26 next far beyond the table", split, false, func(d *Driver) { d.expose(entry{d.data(), 64, Next, 0xffff}) }, "descriptor 65535 in a table of 8"},
		{"26 loop of one", split, false, func(d *Driver) { d.expose(entry{d.data(), 64, Next, 0}) }, "more than 8 descriptors"},
		{"26 loop of two", split, false, func(d *Driver) {
			d.expose(entry{d.data(), 64, Next, 1}, entry{d.data(), 64, Next, 0})
		}, "more than 8 descriptors"},
		{"26 list longer than the ring", packed, false, func(d *Driver) {
			ring := make([]entry, 8)
			for i := range ring {
				ring[i] = entry{d.data(), 64, Next, 0}
			}
			d.expose(ring...)
		}, "more than 8 descriptors"},
		{"27 nested", split, false, func(d *Driver) {
			d.expose(d.tableOf(entry{d.data(), 64, Indirect, 0}))
		}, "is indirect"},
		{"27 loop in a table", split, false, func(d *Driver) {
			d.expose(d.tableOf(entry{d.data(), 64, Next, 1}, entry{d.data(), 64, Next, 0}))
		}, "more than 1024 descriptors"},
		{"27 next beyond a table", split, false, func(d *Driver) {
			d.expose(d.tableOf(entry{d.data(), 64, Next, 2}, entry{d.data(), 64, 0, 0}))
		}, "entry 2 of 2"},
		{"27 in a list", packed, false, func(d *Driver) {
			d.expose(entry{d.data(), 64, Next, 0}, d.tableOf(entry{d.data(), 64, 0, 0}))
		}, "part of a list"},
	}
	for _, o := range []Options{split, packed} {
		list = append(list, []Malformation{
			{"26 length 0", o, false, func(d *Driver) { d.expose(entry{d.data(), 0, 0, 0}) }, "length 0"},
			{"26 length of all ones", o, false, func(d *Driver) { d.expose(entry{d.data(), 0xffff_ffff, 0, 0}) }, "0xffffffff"},
			{"26 sum overflows", o, false, func(d *Driver) { d.expose(entry{1<<64 - 16, 17, 0, 0}) }, "wraps around"},
			{"26 no memory", o, false, func(d *Driver) { d.expose(entry{Nowhere, 64, 0, 0}) }, "0xdead00000000"},
			{"26 no memory to write", o, true, func(d *Driver) { d.expose(entry{Nowhere, 64, Write, 0}) }, "0xdead00000000"},
			{"26 last byte not in memory", o, false, func(d *Driver) {
				g := d.ram.regions[0]
				d.expose(entry{g.gpa + uint64(len(g.mem)) - 63, 64, 0, 0})
			}, "no memory"},
			{"27 with NEXT", o, false, func(d *Driver) {
				e := d.tableOf(entry{d.data(), 64, 0, 0})
				e.flags |= Next
				d.expose(e, entry{d.data(), 64, 0, 0})
			}, "descriptor"},
			{"27 length not a multiple of 16", o, false, func(d *Driver) {
				e := d.tableOf(entry{d.data(), 64, 0, 0}, entry{d.data(), 64, 0, 0})
				e.n = 24
				d.expose(e)
			}, "0x18"},
			{"27 length 0", o, false, func(d *Driver) { d.expose(entry{d.data(), 0, Indirect, 0}) }, "length 0x0"},
			{"27 table too long", o, false, func(d *Driver) { d.expose(entry{d.data(), 16 * 1025, Indirect, 0}) }, "0x4010"},
			{"27 table outside memory", o, false, func(d *Driver) { d.expose(entry{Nowhere, 16, Indirect, 0}) }, "0xdead00000000"},
			{"27 not negotiated", plain(o), false, func(d *Driver) {
				d.expose(d.tableOf(entry{d.data(), 64, 0, 0}))
			}, "not negotiated"},
			{"27 bad entry", o, false, func(d *Driver) {
				d.expose(d.tableOf(entry{Nowhere, 64, 0, 0}))
			}, "0xdead00000000"},
			{"28 readable after writable", o, false, func(d *Driver) {
				d.expose(entry{d.data(), 64, Write | Next, 1}, entry{d.data(), 32, 0, 0})
			}, "length 0x20"},
			{"28 readable to receive into", o, true, func(d *Driver) { d.expose(entry{d.data(), 64, 0, 0}) }, "64 bytes"},
		}...)
	}
	return list
}

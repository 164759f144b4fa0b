package tulip_test

import (
	"testing"

	"polder/tulip"
	tt "polder/tulip/tuliptest"
)

var (
	mDNS    = [6]byte{0x01, 0x00, 0x5e, 0x00, 0x00, 0xfb}
	allV6   = [6]byte{0x33, 0x33, 0x00, 0x00, 0x00, 0x01}
	bridges = [6]byte{0x01, 0x80, 0xc2, 0x00, 0x00, 0x00}
)

// TestHashIndex has the indexes that drivers compute for well-known addresses.
func TestHashIndex(t *testing.T) {
	for _, tc := range []struct {
		mac  [6]byte
		want int
	}{
		{tt.Broadcast, 255}, {tt.AllHosts, 510}, {mDNS, 252}, {allV6, 415}, {bridges, 486}, {tt.Station, 505},
	} {
		if got := tt.HashIndex(tc.mac); got != tc.want {
			t.Errorf("driver's index of % x = %d, want %d", tc.mac, got, tc.want)
		}
		// The chip agrees if this one bit lets the address in, and none but this.
		for _, bit := range []int{tc.want, tc.want ^ 1} {
			var p [192]byte
			p[bit/16*4+bit/8%2] = 1 << (bit % 8)
			hw, d := start(t, tulip.Config{}, tt.Options{})
			i := d.Queue(p[:], tt.SET|tt.FT0|tt.FT1)
			d.Kick()
			if got := d.Load(d.TxDesc(i)); got != tt.SetupDone {
				t.Fatalf("TDES0 = %#x", got)
			}
			hw.Inject(tt.Frame(tc.mac, tt.Other, 60))
			want := tulip.RxFiltered
			if bit == tc.want || tc.mac == tt.Broadcast {
				want = tulip.RxAccepted
			}
			if hw.Last != want {
				t.Errorf("% x with bit %d set: %v, want %v", tc.mac, bit, hw.Last, want)
			}
		}
	}
}

func TestFilter(t *testing.T) {
	const (
		accept = tulip.RxAccepted
		reject = tulip.RxFiltered
	)
	none := func(*tt.Driver) {}
	perfect := func(flags uint32, macs ...[6]byte) func(*tt.Driver) {
		return func(d *tt.Driver) { d.LoadSetupFrame(flags, macs...) }
	}
	hash := func(flags uint32, station [6]byte, groups ...[6]byte) func(*tt.Driver) {
		return func(d *tt.Driver) { d.LoadHashFrame(flags, station, groups...) }
	}
	many := make([][6]byte, 40)
	for i := range many {
		many[i] = [6]byte{0x01, 0x00, 0x5e, 1, 2, byte(i)}
	}

	for _, tc := range []struct {
		name   string
		load   func(*tt.Driver)
		csr6   uint32
		dst    [6]byte
		want   tulip.RxResult
		status uint32 // RDES0 flags besides FT
	}{
		{"no set-up frame yet rejects the station address", none, 0, tt.Station, reject, 0},
		{"no set-up frame yet accepts broadcast", none, 0, tt.Broadcast, accept, tt.RxMF},
		{"no set-up frame yet, promiscuous", none, tt.PR, tt.Station, accept, tt.RxFF},
		{"no set-up frame yet, pass all multicast", none, tt.PM, tt.AllHosts, accept, tt.RxMF},

		{"perfect filtering accepts the first address", perfect(0, tt.Station), 0, tt.Station, accept, 0},
		{"perfect filtering accepts the sixteenth address",
			perfect(0, append(many[:15:15], tt.AllHosts)...), 0, tt.AllHosts, accept, tt.RxMF},
		{"perfect filtering rejects an unlisted address", perfect(0, tt.Station), 0, tt.Other, reject, 0},
		{"perfect filtering rejects an unlisted group", perfect(0, tt.Station), 0, tt.AllHosts, reject, 0},
		{"perfect filtering accepts unlisted broadcast", perfect(0, tt.Station), 0, tt.Broadcast, accept, tt.RxMF},
		{"promiscuous marks an unlisted address", perfect(0, tt.Station), tt.PR, tt.Other, accept, tt.RxFF},
		{"promiscuous marks an unlisted group", perfect(0, tt.Station), tt.PR, tt.AllHosts, accept, tt.RxFF | tt.RxMF},
		{"promiscuous does not mark a listed address", perfect(0, tt.Station), tt.PR, tt.Station, accept, 0},
		{"receive all marks an unlisted address", perfect(0, tt.Station), tt.RA, tt.Other, accept, tt.RxFF},
		{"pass all multicast accepts groups", perfect(0, tt.Station), tt.PM, tt.AllHosts, accept, tt.RxMF},
		{"pass all multicast rejects an unlisted address", perfect(0, tt.Station), tt.PM, tt.Other, reject, 0},

		{"hash filtering accepts its station address", hash(tt.FT0, tt.Station), 0, tt.Station, accept, 0},
		{"hash filtering rejects another station", hash(tt.FT0, tt.Station), 0, tt.Other, reject, 0},
		{"hash filtering does not hash stations", hash(tt.FT0, tt.Station, tt.Other), 0, tt.Other, reject, 0},
		{"hash filtering accepts a group", hash(tt.FT0, tt.Station, many...), 0, many[39], accept, tt.RxMF},
		{"hash filtering rejects a group", hash(tt.FT0, tt.Station, mDNS), 0, allV6, reject, 0},
		{"hash filtering accepts unlisted broadcast", hash(tt.FT0, tt.Station), 0, tt.Broadcast, accept, tt.RxMF},
		{"a perfect table sent as a hash table still lets broadcast in",
			perfect(tt.FT0, tt.Station, tt.Broadcast), 0, tt.Broadcast, accept, tt.RxMF},

		{"inverse filtering rejects a listed address", perfect(tt.FT1, tt.Station), 0, tt.Station, reject, 0},
		{"inverse filtering accepts an unlisted address", perfect(tt.FT1, tt.Station), 0, tt.Other, accept, 0},
		{"inverse filtering rejects listed broadcast", perfect(tt.FT1, tt.Broadcast), 0, tt.Broadcast, reject, 0},
		{"inverse filtering accepts unlisted broadcast", perfect(tt.FT1, tt.Station), 0, tt.Broadcast, accept, tt.RxMF},
		{"inverse filtering, promiscuous", perfect(tt.FT1, tt.Station), tt.PR, tt.Station, accept, tt.RxFF},

		{"hash-only filtering accepts a station", hash(tt.FT0|tt.FT1, tt.Other, tt.Station), 0, tt.Station, accept, 0},
		{"hash-only filtering ignores the perfect address", hash(tt.FT0|tt.FT1, tt.Other, tt.Station), 0, tt.Other, reject, 0},
		{"hash-only filtering accepts a group", hash(tt.FT0|tt.FT1, tt.Other, mDNS), 0, mDNS, accept, tt.RxMF},
		{"hash-only filtering accepts unlisted broadcast", hash(tt.FT0|tt.FT1, tt.Other), 0, tt.Broadcast, accept, tt.RxMF},
	} {
		t.Run(tc.name, func(t *testing.T) {
			hw := tt.NewBare(tulip.Config{MAC: tt.Station})
			d := tt.NewDriver(t, hw, tt.Options{CSR6: tt.MII | tt.FD | tc.csr6})
			d.Reset()
			d.Start()
			tc.load(d)
			frame := tt.Frame(tc.dst, [6]byte{2, 3, 4, 5, 6, 7}, 100)
			hw.Inject(frame)
			if hw.Last != tc.want {
				t.Fatalf("frame to % x: %v, want %v", tc.dst, hw.Last, tc.want)
			}
			if tc.want == accept {
				d.WantRx(frame, tc.status|tt.RxFT)
			}
			d.WantNoRx()
		})
	}
}

// TestFilterMirror reads the filter mode back in CSR6, where writes do not reach it, and
// wants software reset to forget it.
func TestFilterMirror(t *testing.T) {
	hw, d := start(t, tulip.Config{}, tt.Options{})
	for _, tc := range []struct{ flags, mirror uint32 }{
		{0, 0}, {tt.FT0, 1}, {tt.FT1, 0x10}, {tt.FT0 | tt.FT1, 5},
	} {
		d.LoadSetupFrame(tc.flags, tt.Station)
		for _, v := range []uint32{0, 0x15} {
			hw.WriteCSR(6, hw.ReadCSR(6)&^0x15|v)
			if got := hw.ReadCSR(6) & 0x15; got != tc.mirror {
				t.Errorf("CSR6 filter bits = %#x after type %#x and a write of %#x, want %#x", got, tc.flags, v, tc.mirror)
			}
		}
	}
	if hw.Chip.State().Filter == (tulip.Filter{}) {
		t.Fatal("no filter to forget")
	}
	hw.WriteCSR(0, tt.SWR)
	if f := hw.Chip.State().Filter; f != (tulip.Filter{}) {
		t.Errorf("filter after software reset: %+v", f)
	}
}

// TestShortSetupFrame gives a set-up frame of the wrong size: it completes, and the
// filter stays.
func TestShortSetupFrame(t *testing.T) {
	hw, d := start(t, tulip.Config{}, tt.Options{})
	before := hw.Chip.State().Filter
	i := d.Queue(make([]byte, 191), tt.SET)
	d.Kick()
	if got := d.Load(d.TxDesc(i)); got != tt.SetupDone {
		t.Errorf("TDES0 = %#x, want %#x", got, tt.SetupDone)
	}
	if hw.Chip.State().Filter != before {
		t.Error("the filter changed")
	}
}

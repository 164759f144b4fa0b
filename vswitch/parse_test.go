package vswitch

import (
	"encoding/hex"
	"testing"
)

// FuzzParse parses a frame and each of its beginnings: what is found in less of
// a frame must be what is found in all of it.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"ffffffffffff00155d00000108004500002000000000401100000a000001c0a80002004300440000",                       // DHCP
		"ffffffffffff00155d00000181000005080045000020000020004006",                                               // a fragment in a VLAN
		"33330000000100155d00000186dd600000000018003afe800000000000000000000000000001ff0200000000000000000000",   // hop-by-hop
		"33330000000100155d00000188a800058100000686dd6000000000082cff",                                           // QinQ, cut short
		"33330000000100155d0000010064aaaa0300000086dd",                                                           // LLC/SNAP
		"0180c200000000155d0000010026424203",                                                                     // LLC
		"ffffffffffff00155d000001810000008100000081000000810000008100000081000000810000008100000081000000080045", // nine tags
	} {
		b, err := hex.DecodeString(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(append(b, make([]byte, HeadLen)...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < HeaderLen {
			return
		}
		var whole packet
		whole.parse(b)
		if whole.depth > knowsPorts {
			t.Fatalf("depth %d", whole.depth)
		}
		for n := HeaderLen; n < min(len(b), HeadLen); n++ {
			var p packet
			p.parse(b[:n:n])
			switch {
			case p.depth > whole.depth:
				t.Fatalf("%d bytes tell more than all: %+v, %+v", n, p, whole)
			case p.depth >= knowsEtherType && p.etherType != whole.etherType,
				p.depth >= knowsAddresses && (p.source != whole.source || p.destination != whole.destination),
				p.depth >= knowsProtocol && (p.protocol != whole.protocol || p.laterFragment != whole.laterFragment),
				p.depth >= knowsPorts && p != whole:
				t.Fatalf("%d bytes tell otherwise than all: %+v, %+v", n, p, whole)
			}
			if p.depth < knowsPorts && p.hasPorts {
				t.Fatalf("ports that are not known: %+v", p)
			}
			// What a guard lets pass for what is in part of a frame, it lets pass.
			if !guardsDHCP(&p) && guardsDHCP(&whole) || !guardsRouter(&p) && guardsRouter(&whole) {
				t.Fatalf("%d bytes of a frame pass, which is %+v", n, whole)
			}
		}
	})
}

func TestStaticTable(t *testing.T) {
	for n := range 40 {
		table := newStaticTable(n)
		for i := range n {
			k := macKey(i*0x10001 + 1)
			table[table.at(k)] = uint64(k)<<16 | uint64(i+1)
		}
		for i := range 2 * n {
			want := slot(i + 1)
			if i >= n {
				want = 0
			}
			if got := table.lookup(macKey(i*0x10001 + 1)); got != want {
				t.Errorf("of %d addresses, number %d is behind %d, want %d", n, i, got, want)
			}
		}
		count := 0
		table.each(func(macKey, slot) { count++ })
		if count != n {
			t.Errorf("%d addresses, want %d", count, n)
		}
	}
}

// TestFlaps has more addresses move than are remembered.
func TestFlaps(t *testing.T) {
	var f flaps
	for i := range 10_000 {
		if may, _ := f.move(macKey(i+1), 0, uint32(i/1000), 1); !may {
			t.Fatalf("address %d may not move for the first time", i)
		}
	}
	for i := range 3 {
		may, once := f.move(7, 1, 50, 1)
		if may != (i == 0) || once != (i == 1) {
			t.Errorf("move %d: %v, %v", i, may, once)
		}
	}
	if may, _ := f.move(7, 2, 50, 1); !may {
		t.Error("the same address in another VLAN may not move")
	}
}

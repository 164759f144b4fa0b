package vswitch_test

import (
	"bytes"
	"testing"

	"polder/vswitch"
	"polder/vswitch/porttest"
)

// FuzzFrame sends two frames made of arbitrary bytes, cut anywhere and with any
// Len, from one of three ports. Whatever they are, each is either
// dropped for one reason or gets to somebody, whole, and never to its sender.
func FuzzFrame(f *testing.F) {
	plain := frame(broadcast, mac(1), 0).Head
	f.Add(plain, uint8(60), 0, plain, uint8(60), 0)
	f.Add(frame(mac(1), mac(2), 0).Head, uint8(14), 0, frame(mac(2), mac(1), 0).Head, uint8(20), 0)
	f.Add(frame(mac(1), mac(1), 0).Head, uint8(60), 0, plain[:14], uint8(14), 0)
	f.Add(frame(mac(1), broadcast, 0).Head, uint8(60), 0, frame(zero, zero, 0).Head, uint8(60), 0)
	f.Add(frame(vswitch.MAC{0x01, 0x80, 0xc2}, mac(1), 0).Head, uint8(60), 0, plain[:13], uint8(13), 0)
	f.Add([]byte{}, uint8(0), 0, plain, uint8(13), 0)
	f.Add(plain, uint8(60), -61, plain, uint8(60), 1<<40)
	f.Fuzz(func(t *testing.T, bytes1 []byte, head1 uint8, lie1 int, bytes2 []byte, head2 uint8, lie2 int) {
		s := vswitch.New(vswitch.Config{MaxMACs: 16})
		defer s.Close()
		var ports [3]*porttest.Recorder
		var members [3]*vswitch.Member
		for i := range ports {
			ports[i] = porttest.NewRecorder(4)
			m, err := s.Join(string(rune('a'+i)), ports[i], vswitch.PortOptions{})
			if err != nil {
				t.Fatal(err)
			}
			members[i] = m
		}
		whole := [][]byte{bytes1, bytes2}
		batch := []vswitch.Frame{cutAt(bytes1, head1, lie1), cutAt(bytes2, head2, lie2)}

		// The first frame alone from a, then both from b.
		members[0].NewIngress().Forward(batch[:1])
		checkConserved(t, members[0], ports[:], 0, whole[:1])
		members[1].NewIngress().Forward(batch)
		checkConserved(t, members[1], ports[:], 1, whole)

		for _, e := range s.FDB() {
			if e.MAC == zero || e.MAC.IsMulticast() {
				t.Errorf("learned %v", e.MAC)
			}
			if e.Port == "c" {
				t.Errorf("learned %v from c, which sent nothing", e.MAC)
			}
		}
	})
}

// cutAt makes a frame of b with a Head of at most n bytes and the rest in two
// parts. Its Len is wrong by lie.
func cutAt(b []byte, n uint8, lie int) vswitch.Frame {
	head := min(int(n), len(b))
	rest := b[head:]
	return vswitch.Frame{
		Head: b[:head],
		Body: [][]byte{rest[:len(rest)/3], rest[len(rest)/3:]},
		Len:  len(b) + lie,
	}
}

// checkConserved checks that what sender, the only one to have sent since the
// ports were last emptied, lost and what others got adds up to sent.
func checkConserved(t *testing.T, sender *vswitch.Member, ports []*porttest.Recorder, self int, sent [][]byte) {
	t.Helper()
	copies := make([]int, len(sent))
	for i, p := range ports {
		next := 0 // in order: what arrives is a subsequence of what was sent
		for _, got := range p.Take() {
			for next < len(sent) && !bytes.Equal(got, sent[next]) {
				next++
			}
			if next == len(sent) {
				t.Fatalf("port %d got a frame out of order or that nobody sent: %x", i, got)
			}
			if i == self {
				t.Errorf("port %d got its own frame %x", i, got)
			}
			copies[next]++
			next++
		}
	}
	arrived := 0
	for _, n := range copies {
		if n > 0 {
			arrived++
		}
	}
	st := sender.Stats()
	if n := st.Drops.Total(); n+uint64(arrived) != uint64(len(sent)) {
		t.Errorf("of %d frames %d arrived and %d were dropped: %+v", len(sent), arrived, n, st)
	}
	broken := st.Drops[vswitch.DropRunt] + st.Drops[vswitch.DropOversize] + st.Drops[vswitch.DropMalformed]
	if st.RxFrames+broken != uint64(len(sent)) {
		t.Errorf("of %d frames %d are counted and %d too broken for it", len(sent), st.RxFrames, broken)
	}
	if st.MACs > len(sent) {
		t.Errorf("learned %d addresses from %d frames", st.MACs, len(sent))
	}
}

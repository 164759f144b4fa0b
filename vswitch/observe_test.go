package vswitch_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"polder/vswitch"
)

// seen renders packets, like "a in 60" or "b out 60 drop mtu".
func seen(packets []vswitch.Packet) string {
	var all []string
	for _, p := range packets {
		s := fmt.Sprintf("%s %v %d", p.Port, p.Direction, p.Len)
		if p.Dropped {
			s += " drop " + p.Reason.String()
		}
		all = append(all, s)
	}
	return strings.Join(all, ", ")
}

// TestObserve has two observers with different ports and lives.
func TestObserve(t *testing.T) {
	s := newSwitch(t, vswitch.Config{})
	a := joinSmall(t, s, "a", inVLAN(t, "access 5"))
	observe := func(c vswitch.ObserverConfig) *vswitch.Observer {
		o, err := s.Observe(c)
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	check := func(o *vswitch.Observer, want string) {
		t.Helper()
		packets, err := o.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := seen(packets); got != want {
			t.Errorf("seen %s\nwant %s", got, want)
		}
	}
	all := observe(vswitch.ObserverConfig{})
	b := joinSmall(t, s, "b", inVLAN(t, "trunk 5"))
	onlyA := observe(vswitch.ObserverConfig{Members: []*vswitch.Member{a.Member}})
	c := joinSmall(t, s, "c", vswitch.PortOptions{VLAN: vswitch.VLAN{Mode: vswitch.VLANAccess, ID: 5}, MTU: 68, LinkDown: true, MACs: []vswitch.MAC{mac(3)}})
	send := func(p *station, dst vswitch.MAC, n int) {
		f := frame(dst, mac(1), 0)
		f.Head = append(f.Head, make([]byte, n-60)...)
		f.Len = n
		if p == b {
			f = tagged(f, "5")
		}
		p.Forward([]vswitch.Frame{f})
	}
	send(a, broadcast, 100)
	check(all, "a in 100, b out 104")
	check(onlyA, "a in 100")
	send(a, mac(3), 60)
	check(all, "a in 60, c out 60 drop link-down")
	if err := c.SetLink(true); err != nil {
		t.Fatal(err)
	}
	send(b, mac(3), 99)
	check(all, "b in 103, c out 99 drop mtu")
	send(b, broadcast, 61)
	check(all, "b in 65, a out 61, c out 61")
	check(onlyA, "a in 60, a out 61")
	for range 9 {
		send(b, broadcast, 61)
	}
	if packets, err := onlyA.Read(t.Context()); err != nil || !strings.HasSuffix(seen(packets), "a out 61, a out 61 drop receiver-full, a out 61 drop receiver-full") {
		t.Errorf("seen %s, %v", seen(packets), err)
	}

	onlyA.Close()
	onlyA.Close()
	if _, err := onlyA.Read(t.Context()); !errors.Is(err, vswitch.ErrObserverEnded) {
		t.Errorf("reading after the end: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := all.Read(ctx); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := all.Read(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("reading in vain: %v", err)
	}
	var ports []string
	for _, p := range all.Ports() {
		ports = append(ports, fmt.Sprintf("%s %d/%d", p.Port, p.Seen, p.Lost))
	}
	if got := strings.Join(ports, ", "); got != "a 12/0, b 12/0, c 12/0" {
		t.Errorf("seen in all: %s", got)
	}

	other := newSwitch(t, vswitch.Config{})
	if _, err := other.Observe(vswitch.ObserverConfig{Members: []*vswitch.Member{a.Member}}); err == nil {
		t.Error("a port of another switch was observed")
	}
	if err := b.Leave(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Observe(vswitch.ObserverConfig{Members: []*vswitch.Member{b.Member}}); err == nil {
		t.Error("a port that has left was observed")
	}
}

// TestObserveBadLengths observes frames that lie about what their checksum
// covers, or are longer than frames can be. They are seen as they are.
func TestObserveBadLengths(t *testing.T) {
	p := packet{dst: broadcast, udp: true, payload: 10}
	short := p.bytes()
	binary.BigEndian.PutUint16(short[14+20+4:], 0xffff) // the length in the UDP header
	long := append(slices.Clone(short), make([]byte, vswitch.MaxFrameLen+1-len(short))...)
	for _, b := range [][]byte{short, long} {
		s := newSwitch(t, vswitch.Config{})
		a := joinSmall(t, s, "a", vswitch.PortOptions{})
		o, err := s.Observe(vswitch.ObserverConfig{SnapLen: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		a.Forward([]vswitch.Frame{lent(b, p.checksum())})
		packets, err := o.Read(t.Context())
		if err != nil || len(packets) != 1 || packets[0].Len != len(b) || !bytes.Equal(packets[0].Data, b[:min(len(b), vswitch.MaxFrameLen)]) {
			t.Errorf("seen %s, %v", seen(packets), err)
		}
	}
}

// TestObserveUnderLoad: what is seen and what is lost is all there was, whoever
// sends and however slowly it is read.
func TestObserveUnderLoad(t *testing.T) {
	const senders, batches = 3, 200
	s := newSwitch(t, vswitch.Config{})
	var wg sync.WaitGroup
	o, err := s.Observe(vswitch.ObserverConfig{Buffer: 1})
	if err != nil {
		t.Fatal(err)
	}
	for i := range senders {
		m, err := s.Join(fmt.Sprint(i), blackHole{}, vswitch.PortOptions{})
		if err != nil {
			t.Fatal(err)
		}
		in := m.NewIngress()
		wg.Go(func() {
			for range batches {
				in.Forward([]vswitch.Frame{short(broadcast, mac(i)), short(broadcast, mac(i))})
			}
		})
	}
	go func() {
		wg.Wait()
		o.Close()
	}()
	var got, lost uint64
	for {
		packets, err := o.Read(t.Context())
		if err != nil {
			break
		}
		for _, p := range packets {
			if len(p.Data) != 64 || vswitch.MAC(p.Data[:6]) != broadcast {
				t.Fatalf("a copy is %x", p.Data)
			}
			got++
			lost += p.Lost
		}
	}
	var all, allLost uint64
	for _, p := range o.Ports() {
		all += p.Seen
		allLost += p.Lost
	}
	if got+allLost != all || lost > allLost || all == 0 {
		t.Errorf("%d packets read, %d of them told of %d lost, and in all %d were seen and %d lost", got, got, lost, all, allLost)
	}
}

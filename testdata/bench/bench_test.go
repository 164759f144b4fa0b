package main

import (
	"encoding/binary"
	"testing"
	"time"
)

// udpRecord is a record of a capture: an IPv4 UDP packet to this port at this time.
func udpRecord(at time.Duration, port uint16) []byte {
	frame := make([]byte, 60)
	binary.BigEndian.PutUint16(frame[12:], 0x0800)
	frame[14], frame[23] = 0x45, 17
	binary.BigEndian.PutUint16(frame[36:], port)
	return record(at, frame)
}

func record(at time.Duration, frame []byte) []byte {
	r := binary.NativeEndian.AppendUint32(nil, uint32(at/time.Second))
	r = binary.NativeEndian.AppendUint32(r, uint32(at%time.Second/time.Microsecond))
	r = binary.NativeEndian.AppendUint32(r, uint32(len(frame)))
	r = binary.NativeEndian.AppendUint32(r, uint32(len(frame)))
	return append(r, frame...)
}

func TestDiscoverToRequest(t *testing.T) {
	header := make([]byte, 24)
	discover, request := udpRecord(1500*time.Millisecond, 67), udpRecord(4750*time.Millisecond, 69)
	arp := record(time.Second, make([]byte, 42))
	for _, test := range []struct {
		name    string
		records [][]byte
		cut     int // bytes not written yet
		want    time.Duration
		ok      bool
	}{
		{"nothing yet", nil, 0, 0, false},
		{"no request yet", [][]byte{arp, discover}, 0, 0, false},
		{"from the first discover", [][]byte{discover, udpRecord(3*time.Second, 67), arp, request}, 0, 3250 * time.Millisecond, true},
		{"a request of before", [][]byte{udpRecord(0, 69), discover, request}, 0, 3250 * time.Millisecond, true},
		{"a record half written", [][]byte{discover, request}, 10, 0, false},
	} {
		capture := header
		for _, r := range test.records {
			capture = append(capture[:len(capture):len(capture)], r...)
		}
		got, ok := discoverToRequest(capture[:len(capture)-test.cut])
		if got != test.want || ok != test.ok {
			t.Errorf("%s: %v, %v, want %v, %v", test.name, got, ok, test.want, test.ok)
		}
	}
}

func TestMedian(t *testing.T) {
	for _, test := range []struct {
		values []float64
		want   float64
	}{
		{[]float64{3}, 3},
		{[]float64{4, 1}, 2.5},
		{[]float64{9, 1, 2}, 2},
		{[]float64{9, 1, 2, 4}, 3},
	} {
		if got := median(test.values); got != test.want {
			t.Errorf("median(%v) = %v, want %v", test.values, got, test.want)
		}
	}
}

func TestQuantile(t *testing.T) {
	ten := []float64{7, 3, 10, 1, 5, 9, 2, 8, 4, 6}
	for _, test := range []struct {
		values  []float64
		q, want float64
	}{
		{[]float64{3}, 0.1, 3},
		{[]float64{3}, 0.9, 3},
		{ten, 0.1, 2},
		{ten, 0.5, 6},
		{ten, 0.9, 10},
		{ten, 1, 10},
	} {
		if got := quantile(test.values, test.q); got != test.want {
			t.Errorf("quantile(%v, %v) = %v, want %v", test.values, test.q, got, test.want)
		}
	}
}

func TestVirtioUser(t *testing.T) {
	sockets := [2]string{"/a", "/b"}
	for _, test := range []struct {
		load       load
		properties []string
		want       [2]string
	}{
		{load{}, nil, [2]string{"net_virtio_user0,mac=02:00:00:00:0a:00,path=/a", "net_virtio_user1,mac=02:00:00:00:0b:00,path=/b"}},
		{load{driver: packed}, []string{"server=1"}, [2]string{"net_virtio_user0,mac=02:00:00:00:0a:00,path=/a,server=1,packed_vq=1",
			"net_virtio_user1,mac=02:00:00:00:0b:00,path=/b,server=1,packed_vq=1"}},
	} {
		if got := test.load.virtioUser(sockets, test.properties...); got != test.want {
			t.Errorf("%+v: %q, want %q", test.load, got, test.want)
		}
	}
}

func TestChoose(t *testing.T) {
	for _, names := range [][]string{nil, {"all"}} {
		if chosen, err := choose(names); err != nil || len(chosen) != len(benchmarks) {
			t.Errorf("choose(%q): %d of %d, error %v", names, len(chosen), len(benchmarks), err)
		}
	}
	if chosen, err := choose([]string{"tftp-wire-w1"}); err != nil || len(chosen) != 1 || chosen[0].label() != "tftp-wire-w1" {
		t.Errorf("choose of one: %v, error %v", chosen, err)
	}
	if _, err := choose([]string{"tftp"}); err == nil {
		t.Error("choose of an unknown name: no error")
	}
}

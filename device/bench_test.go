package device_test

import (
	"fmt"
	"testing"

	tt "polder/tulip/tuliptest"
)

// BenchmarkTwoGuests sends rings full of frames from one guest to another, through both adapters and the switch. An
// operation is one frame; its share of the two register accesses for each ring is in it.
func BenchmarkTwoGuests(b *testing.B) {
	for _, n := range []int{64, 1514} {
		b.Run(fmt.Sprintf("%dB", n), func(b *testing.B) {
			ga, gb, _, _ := pair(b)
			load := newLoad(ga, ga.driver(macA, tt.Options{}), gb, gb.driver(macB, tt.Options{}), n)
			load()
			b.ReportAllocs()
			b.SetBytes(int64(n))
			b.ResetTimer()
			for sent := 0; sent < b.N; sent += loadLen {
				load()
			}
		})
	}
}

package vswitch

import (
	"math/rand/v2"
	"testing"
)

// plainChecksum is RFC 1071, 4.1, word by word.
func plainChecksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 != 0 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func TestChecksum(t *testing.T) {
	random := rand.New(rand.NewPCG(1071, 1))
	fill := map[string]func() byte{
		"zeros":  func() byte { return 0 },
		"ones":   func() byte { return 0xff },
		"random": func() byte { return byte(random.Uint32()) },
		"mostly ones": func() byte {
			if random.IntN(50) == 0 {
				return 0xfe
			}
			return 0xff
		},
	}
	for name, next := range fill {
		for n := range 400 {
			b := make([]byte, n+random.IntN(2)*1000)
			for i := range b {
				b[i] = next()
			}
			var c checksum
			for rest := b; len(rest) > 0; {
				k := 1 + random.IntN(len(rest))
				c.add(rest[:k])
				c.add(nil)
				rest = rest[k:]
			}
			if got, want := c.value(), plainChecksum(b); got != want {
				t.Fatalf("%d bytes, %s: %#04x, want %#04x", len(b), name, got, want)
			}
		}
	}
	var c checksum
	c.addWord(0x1234)
	c.addWord(0xffff)
	c.add([]byte{0xab})
	if got, want := c.value(), plainChecksum([]byte{0x12, 0x34, 0xff, 0xff, 0xab}); got != want {
		t.Errorf("words: %#04x, want %#04x", got, want)
	}
}

func BenchmarkChecksum(b *testing.B) {
	memory := make([]byte, 1448)
	b.SetBytes(int64(len(memory)))
	for b.Loop() {
		var c checksum
		c.add(memory)
		sink = c.value()
	}
}

var sink uint16 // keeps a result alive

package device_test

import (
	"fmt"
	"testing"

	"polder/device"
	"polder/device/virtq/virtqtest"
	tt "polder/tulip/tuliptest"
)

// BenchmarkVirtioNetPair sends frames from one guest to another, through both adapters and the switch. An operation
// is one frame, with the work of the two drivers in it.
func BenchmarkVirtioNetPair(b *testing.B) {
	for _, o := range layouts {
		for _, n := range []int{64, 1514} {
			b.Run(fmt.Sprintf("%v/%dB", o, n), func(b *testing.B) {
				const burst = 32
				sw := newSwitch(b)
				va, vb := newVirtioNet(b, device.VirtioNetConfig{}), newVirtioNet(b, device.VirtioNetConfig{})
				joinVirtioNet(b, sw, va, "a")
				joinVirtioNet(b, sw, vb, "b")
				ga := attachVirtio(b, va, virtioOptions{Options: o, features: fMergeable})
				gb := attachVirtio(b, vb, virtioOptions{Options: o, features: fMergeable})
				gb.send(tt.Frame(tt.Broadcast, macB, 60)) // the switch learns it
				tx, rx := ga.tx[0], gb.rx[0]
				tx.Disarm()
				rx.Disarm()
				frame := tt.Frame(tt.Broadcast, macA, n)
				copy(frame, macB[:])
				for token := range burst {
					copy(tx.ram.Bytes(tx.buffers[token], 2048)[12:], frame)
				}
				b.ReportAllocs()
				b.SetBytes(int64(n))
				b.ResetTimer()
				for sent := 0; sent < b.N; sent += burst {
					for token := range burst {
						tx.one[0] = virtqtest.Buffer{Addr: tx.buffers[token], Len: uint32(12 + n)}
						tx.Add(tx.one[:], token, false)
					}
					tx.Publish() // and no kick
					for left := burst; left > 0; {
						left -= va.Pull(0)
					}
					for range burst {
						tx.Reap()
						u, ok := rx.Reap()
						if !ok {
							b.Fatal("a frame is missing")
						}
						rx.give(u.Token, gb.o.buffer)
					}
					rx.Publish()
				}
			})
		}
	}
}

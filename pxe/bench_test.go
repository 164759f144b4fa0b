package pxe

import (
	"encoding/binary"
	"net/netip"
	"strconv"
	"testing"
	"testing/fstest"

	"polder/vswitch"
)

// lockstep is a client as thin as a client can be: Deliver leaves a token, and the benchmark's
// goroutine answers, with frames made in advance.
type lockstep struct {
	in    *vswitch.Ingress
	acked chan uint32 // source port and block of what came
}

func (c *lockstep) Deliver(frames []*vswitch.Frame) int {
	for _, f := range frames {
		p := f.Head[42:]
		if f.Len < 60 || binary.BigEndian.Uint16(f.Head[12:]) != 0x0800 || binary.BigEndian.Uint16(f.Head[36:]) != 2000 {
			continue
		}
		token := uint32(binary.BigEndian.Uint16(f.Head[34:])) << 16
		if p[1] == opDATA {
			token |= uint32(binary.BigEndian.Uint16(p[2:]))
		}
		c.acked <- token
	}
	return len(frames)
}

// BenchmarkTFTP transfers a file of 8 MiB in memory over a real switch with blksize 1468 to a client
// that costs next to nothing. "library" is the same with github.com/pin/tftp behind the gate.
func BenchmarkTFTP(b *testing.B) {
	const size = 8 << 20
	for _, bench := range []struct {
		name    string
		window  int
		library bool
	}{{"own/w1", 1, false}, {"library/w1", 1, true}, {"own/w4", 4, false}, {"own/w16", 16, false}} {
		b.Run(bench.name, func(b *testing.B) {
			cfg := testConfig()
			cfg.Files = fstest.MapFS{"big": {Data: content(size)}}
			w := newWorld(b, cfg, func(s *Server) { s.libraryServesOctet = bench.library })
			c := &lockstep{acked: make(chan uint32, 1024)}
			m, err := w.sw.Join("client", c, vswitch.PortOptions{})
			if err != nil {
				b.Fatal(err)
			}
			c.in = m.NewIngress()
			src := netip.AddrPortFrom(guestAddr, 2000)
			options := []string{"blksize", "1468"}
			if bench.window > 1 {
				options = append(options, "windowsize", strconv.Itoa(bench.window))
			}
			request := udpFrame(guestMAC, serverMAC, src, netip.AddrPortFrom(testServer, portTFTP), rrq("big", "octet", options...))
			blocks := size/1468 + 1
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				c.in.Forward([]vswitch.Frame{{Head: request, Len: len(request)}})
				token := <-c.acked
				tid := uint16(token >> 16)
				send := func(block int) {
					ack := udpFrame(guestMAC, serverMAC, src, netip.AddrPortFrom(testServer, tid), append([]byte{0, opACK}, be16(block)...))
					c.in.Forward([]vswitch.Frame{{Head: ack, Len: len(ack)}})
				}
				send(0)
				for n := 1; n <= blocks; n++ {
					token := <-c.acked
					if int(token&0xffff) != n {
						b.Fatalf("block %d, want %d", token&0xffff, n)
					}
					if n%bench.window == 0 || n == blocks {
						send(n)
					}
				}
			}
			b.ReportMetric(b.Elapsed().Seconds()*1e6/float64(b.N*blocks), "µs/block")
		})
	}
}

package pxe

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"polder/vswitch"
)

// both runs a test with each kind of sender.
func both(t *testing.T, f func(t *testing.T, edit func(*Server))) {
	for _, kind := range []struct {
		name    string
		library bool
	}{{"own", false}, {"library", true}} {
		t.Run(kind.name, func(t *testing.T) {
			f(t, func(s *Server) { s.libraryServesOctet = kind.library })
		})
	}
}

// TestTFTPSizes crosses sizes around the block with options.
func TestTFTPSizes(t *testing.T) {
	both(t, func(t *testing.T, edit func(*Server)) {
		cfg := testConfig()
		files := fstest.MapFS{}
		for _, n := range []int{0, 1, 511, 512, 513, 1468, 2936, 65535, 65536, 65537, 200_000} {
			files[strconv.Itoa(n)] = &fstest.MapFile{Data: content(n)}
		}
		cfg.Files = files
		w := newWorld(t, cfg, edit)
		g := w.join("guest", guestMAC, guestAddr)
		port := uint16(2000)
		for name, file := range files {
			for _, options := range [][]string{
				nil,
				{"blksize", "1468"},
				{"tsize", "0", "blksize", "1432"},
				{"BLKSIZE", "1024", "TSize", "0"},
			} {
				port++
				r, err := (&tftpClient{g: g, port: port}).get(name, options...)
				if err != nil || !bytes.Equal(r.data, file.Data) {
					t.Errorf("%s bytes, options %q: got %d bytes in %d blocks, %v", name, options, len(r.data), r.blocks, err)
				}
				w.event(EventDone)
			}
		}
	})
}

// TestTFTPOptions has what is answered to what is asked (RFC 2347, 2348, 2349, 7440).
func TestTFTPOptions(t *testing.T) {
	cfg := testConfig()
	cfg.Files = fstest.MapFS{"f": {Data: content(5000)}}
	w := newWorld(t, cfg)
	g := w.join("guest", guestMAC, guestAddr)
	for i, c := range []struct {
		name string
		ask  []string
		want map[string]string
	}{
		{"none", nil, nil},
		{"blksize", []string{"blksize", "1024"}, map[string]string{"blksize": "1024"}},
		{"blksize above what a frame holds", []string{"blksize", "65464"}, map[string]string{"blksize": "1468"}},
		{"the smallest blksize", []string{"blksize", "8"}, map[string]string{"blksize": "8"}},
		{"blksize too small", []string{"blksize", "7"}, nil},
		{"blksize no number", []string{"blksize", "big"}, nil},
		{"blksize negative", []string{"blksize", "-1"}, nil},
		{"blksize beyond all numbers", []string{"blksize", strings.Repeat("9", 400)}, nil},
		{"tsize", []string{"tsize", "0"}, map[string]string{"tsize": "5000"}},
		{"tsize with a value of the client's", []string{"tsize", "77"}, map[string]string{"tsize": "5000"}},
		{"timeout", []string{"timeout", "3"}, map[string]string{"timeout": "3"}},
		{"timeout zero", []string{"timeout", "0"}, nil},
		{"timeout too long", []string{"timeout", "256"}, nil},
		{"windowsize", []string{"windowsize", "4"}, map[string]string{"windowsize": "4"}},
		{"windowsize one", []string{"windowsize", "1"}, map[string]string{"windowsize": "1"}},
		{"windowsize zero", []string{"windowsize", "0"}, nil},
		{"windowsize above ours", []string{"windowsize", "65535"}, map[string]string{"windowsize": "64"}},
		{"unknown", []string{"multicast", "", "x", "y"}, nil},
		{"option without value", []string{"tsize"}, nil},
		{"all", []string{"windowsize", "8", "timeout", "1", "tsize", "0", "blksize", "512"},
			map[string]string{"windowsize": "8", "timeout": "1", "tsize": "5000", "blksize": "512"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := (&tftpClient{g: g, port: uint16(3000 + i)}).get("f", c.ask...)
			if err != nil || len(r.data) != 5000 {
				t.Fatalf("%d bytes, %v", len(r.data), err)
			}
			if fmt.Sprint(r.oack) != fmt.Sprint(c.want) {
				t.Errorf("OACK %v, want %v", r.oack, c.want)
			}
		})
	}
}

// TestTFTPErrors has the error for each request that cannot be served.
func TestTFTPErrors(t *testing.T) {
	cfg := testConfig()
	cfg.Files = fstest.MapFS{"dir/f": {Data: content(10)}, "bad": {Data: content(10)}}
	w := newWorld(t, cfg)
	g := w.join("guest", guestMAC, guestAddr)
	for i, c := range []struct {
		name    string
		request []byte
		code    int
	}{
		{"no such file", rrq("nothing", "octet"), errNotFound},
		{"a directory", rrq("dir", "octet"), errNotFound},
		{"the root", rrq("/", "octet"), errNotFound},
		{"no name", rrq("", "octet"), errNotFound},
		{"above the root", rrq("../../etc/passwd", "octet"), errAccess},
		{"above the root with backslashes", rrq(`..\..\etc\passwd`, "octet"), errAccess},
		{"above the root in the middle", rrq("dir/../../x", "octet"), errAccess},
		{"not UTF-8", rrq("\xc3\x28", "octet"), errNotFound},
		{"write request", append([]byte{0, opWRQ}, rrq("f", "octet")[2:]...), errAccess},
		{"mode mail", rrq("dir/f", "mail"), errIllegal},
		{"no mode", []byte{0, opRRQ, 'f', 0}, errIllegal},
		{"no end", []byte{0, opRRQ, 'f', 0, 'o', 'c', 't', 'e', 't'}, errIllegal},
		{"nothing", []byte{0, opRRQ}, errIllegal},
		{"DATA", []byte{0, opDATA, 0, 1}, errIllegal},
		{"ACK", []byte{0, opACK, 0, 1}, errIllegal},
		{"opcode unknown", []byte{0, 99, 0, 1}, errIllegal},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := (&tftpClient{g: g, port: uint16(4000 + i)}).request(c.request)
			if err != nil || r.errCode != c.code {
				t.Errorf("error %d %q, %v; want %d", r.errCode, r.errText, err, c.code)
			}
			if strings.Contains(r.errText, "open") || strings.Contains(r.errText, "/") {
				t.Errorf("the error tells the host's business: %q", r.errText)
			}
		})
	}
	// An ERROR to port 69 is not answered: what comes next is the answer to this.
	g.sendUDP(4999, portTFTP, []byte{0, opERROR, 0, 0, 0})
	g.sendUDP(4998, portTFTP, []byte{0})
	if r, err := (&tftpClient{g: g, port: 4997}).get("dir/f"); err != nil || len(r.data) != 10 || len(g.frames) != 0 {
		t.Errorf("%d bytes, %d frames more, %v", len(r.data), len(g.frames), err)
	}
}

func TestTFTPNetascii(t *testing.T) {
	cfg := testConfig()
	text := strings.Repeat("a line\nand \r a return\n", 100)
	cfg.Files = fstest.MapFS{"text": {Data: []byte(text)}}
	w := newWorld(t, cfg)
	g := w.join("guest", guestMAC, guestAddr)
	for i, options := range [][]string{nil, {"blksize", "1024", "tsize", "0"}} {
		r, err := (&tftpClient{g: g, port: uint16(2000 + i)}).request(rrq("text", "NetASCII", options...))
		want := strings.ReplaceAll(strings.ReplaceAll(text, "\r", "\r\x00"), "\n", "\r\n")
		if err != nil || string(r.data) != want {
			t.Errorf("options %q: got %q, %v", options, r.data, err)
		}
		if _, said := r.oack["tsize"]; said {
			t.Error("tsize is told, which netascii makes wrong")
		}
		w.event(EventDone)
	}
}

// TestTFTPRollover passes block 65,535, behind which 0 follows, in lock step and in the middle of a window.
func TestTFTPRollover(t *testing.T) {
	const size = 8 * 66_000
	for _, window := range []string{"1", "50"} {
		t.Run("window "+window, func(t *testing.T) {
			cfg := testConfig()
			cfg.Files = bigFS(size)
			w := newWorld(t, cfg)
			g := w.join("guest", guestMAC, guestAddr)
			r, err := (&tftpClient{g: g, port: 2000}).get("big", "blksize", "8", "windowsize", window)
			if err != nil || r.blocks != 66_001 || !bytes.Equal(r.data, content(size)) {
				t.Errorf("%d blocks, %d bytes, %v", r.blocks, len(r.data), err)
			}
		})
	}
}

// TestTFTPFaults loses, doubles and reorders frames in both directions, the same way in each run.
func TestTFTPFaults(t *testing.T) {
	const size = 30_000
	for _, c := range []struct {
		name               string
		lose, double, swap float64
	}{
		{"loss", 0.03, 0, 0},
		{"duplication", 0, 0.5, 0},
		{"reordering", 0, 0, 0.1},
		{"all", 0.02, 0.1, 0.1},
	} {
		for _, window := range []int{1, 8} {
			t.Run(fmt.Sprintf("%s/window %d", c.name, window), func(t *testing.T) {
				t.Parallel()
				cfg := testConfig()
				cfg.Files = bigFS(size)
				cfg.Retries = 50
				w := newWorld(t, cfg)
				g := w.join("guest", guestMAC, guestAddr)
				fault := func(seed uint64) func([]byte) [][]byte {
					random := rand.New(rand.NewPCG(seed, uint64(window)))
					var held []byte
					return func(f []byte) (out [][]byte) {
						if random.Float64() < c.lose {
							return nil
						}
						if held == nil && random.Float64() < c.swap {
							held = f
							return nil
						}
						out = append(out, f)
						if random.Float64() < c.double {
							out = append(out, f)
						}
						if held != nil {
							out = append(out, held)
							held = nil
						}
						return out
					}
				}
				g.sendFault, g.recvFault = fault(1), fault(2)
				r, err := (&tftpClient{g: g, port: 2000, timeout: 3 * tickInterval}).get("big", "blksize", "1400", "windowsize", strconv.Itoa(window))
				if err != nil || !bytes.Equal(r.data, content(size)) {
					t.Errorf("%d of %d bytes, %v", len(r.data), size, err)
				}
			})
		}
	}
}

// data returns the next packet of a transfer for a client that is driven by hand.
func (g *machine) data(port uint16) (p []byte, tid uint16) {
	g.t.Helper()
	for {
		if d := g.recvUDP(); d.dst.Port() == port {
			return d.payload, d.src.Port()
		}
	}
}

func ackPacket(block int) []byte { return append([]byte{0, opACK}, be16(block)...) }

// TestTFTPDuplicateACK proves that a repeated ACK in lock step is never answered (the Sorcerer's
// Apprentice, RFC 1123, section 4.2.3.1): each block comes once, whatever the client repeats.
func TestTFTPDuplicateACK(t *testing.T) {
	both(t, func(t *testing.T, edit func(*Server)) {
		cfg := testConfig()
		cfg.Files = bigFS(100 * 512)
		cfg.Timeout = patience // so that nothing is repeated for lack of an answer
		w := newWorld(t, cfg, edit)
		g := w.join("guest", guestMAC, guestAddr)
		r, err := (&tftpClient{g: g, port: 2000, copies: 3}).get("big")
		if err != nil || r.blocks != 101 {
			t.Fatalf("%d blocks, %v", r.blocks, err)
		}
		w.event(EventDone)
		for len(g.frames) > 0 {
			if d, ok, _ := parseUDP(g.recv()); ok {
				t.Errorf("a block came twice: % x", d.payload[:4])
			}
		}
	})
}

// TestTFTPRepeatedRequest proves that a repeated RRQ goes to the transfer it began, and one after the
// transfer has moved on begins anew, on another transfer ID.
func TestTFTPRepeatedRequest(t *testing.T) {
	both(t, func(t *testing.T, edit func(*Server)) {
		cfg := testConfig()
		cfg.Files = bigFS(5000)
		w := newWorld(t, cfg, edit)
		g := w.join("guest", guestMAC, guestAddr)
		for range 2 {
			g.sendUDP(2000, portTFTP, rrq("big", "octet", "tsize", "0"))
		}
		_, first := g.data(2000)
		if _, again := g.data(2000); again != first {
			t.Fatalf("transfer IDs %d and %d for one request", first, again)
		}
		g.sendUDP(2000, first, ackPacket(0))
		for p, _ := g.data(2000); p[1] != opDATA; p, _ = g.data(2000) {
		}
		g.sendUDP(2000, portTFTP, rrq("big", "octet", "tsize", "0"))
		if e := w.event(EventAborted); !strings.Contains(e.Detail, "anew") {
			t.Errorf("event %+v", e)
		}
		w.event(EventRequest)
		for {
			p, tid := g.data(2000)
			if tid != first {
				if p[1] != opOACK {
					t.Errorf("the new transfer begins with % x", p[:4])
				}
				return
			}
		}
	})
}

// TestTFTPStranger proves that a packet from elsewhere gets error 5 and does no harm.
func TestTFTPStranger(t *testing.T) {
	both(t, func(t *testing.T, edit func(*Server)) {
		cfg := testConfig()
		cfg.Files = bigFS(1000)
		cfg.Timeout = patience
		w := newWorld(t, cfg, edit)
		g := w.join("guest", guestMAC, guestAddr)
		g.sendUDP(2000, portTFTP, rrq("big", "octet"))
		_, tid := g.data(2000)
		for _, p := range [][]byte{ackPacket(1), {0, opERROR, 0, 0, 0}} {
			g.sendUDP(2001, tid, p)
			if p, _ := g.data(2001); p[1] != opERROR || p[3] != errUnknownID {
				t.Errorf("the stranger got % x", p)
			}
		}
		g.sendUDP(2000, tid, ackPacket(1))
		if p, _ := g.data(2000); p[1] != opDATA || p[3] != 2 {
			t.Errorf("the client got % x", p[:4])
		}
	})
}

// TestTFTPEnds has the ways in which a transfer ends, as events tell them.
func TestTFTPEnds(t *testing.T) {
	both(t, func(t *testing.T, edit func(*Server)) {
		setup := func(t *testing.T) (*world, *machine) {
			cfg := testConfig()
			cfg.Files = bigFS(1000)
			cfg.Retries = 1
			w := newWorld(t, cfg, edit)
			return w, w.join("guest", guestMAC, guestAddr)
		}
		t.Run("probe of the size, EDK2", func(t *testing.T) {
			w, g := setup(t)
			g.sendUDP(2000, portTFTP, rrq("big", "octet", "tsize", "0", "blksize", "1468"))
			p, tid := g.data(2000)
			if got := parseOACK(p[2:]); got["tsize"] != "1000" {
				t.Errorf("OACK %v", got)
			}
			g.sendUDP(2000, tid, append([]byte{0, opERROR, 0, errOptions}, "User aborted the transfer\x00"...))
			if e := w.event(EventProbe); e.File != "big" || e.Size != 1000 {
				t.Errorf("event %+v", e)
			}
		})
		t.Run("the client gives up", func(t *testing.T) {
			w, g := setup(t)
			g.sendUDP(2000, portTFTP, rrq("big", "octet"))
			_, tid := g.data(2000)
			g.sendUDP(2000, tid, append([]byte{0, opERROR, 0, 3}, "disk full\x1b[2J\x00"...))
			if e := w.event(EventAborted); !strings.Contains(e.Detail, `3 "disk full?[2J"`) {
				t.Errorf("event %+v", e)
			}
		})
		t.Run("the client goes silent", func(t *testing.T) {
			w, g := setup(t)
			g.sendUDP(2000, portTFTP, rrq("big", "octet"))
			for range 2 {
				if p, _ := g.data(2000); p[1] != opDATA || p[3] != 1 {
					t.Fatalf("got % x", p[:4])
				}
			}
			w.event(EventStalled)
		})
		t.Run("the guest is reset", func(t *testing.T) {
			w, g := setup(t)
			g.sendUDP(2000, portTFTP, rrq("big", "octet"))
			g.data(2000)
			g.sendDHCP(bootp{vend: vend(opt(53, 1))})
			if e := w.event(EventAborted); !strings.Contains(e.Detail, "boots anew") {
				t.Errorf("event %+v", e)
			}
		})
		t.Run("the service closes", func(t *testing.T) {
			w, g := setup(t)
			g.sendUDP(2000, portTFTP, rrq("big", "octet"))
			g.data(2000)
			w.server.Close()
			if e := w.event(EventAborted); !strings.Contains(e.Detail, "closing") {
				t.Errorf("event %+v", e)
			}
		})
		t.Run("the file cannot be read on", func(t *testing.T) {
			cfg := testConfig()
			cfg.Files = brokenFS{}
			w := newWorld(t, cfg, edit)
			g := w.join("guest", guestMAC, guestAddr)
			r, err := (&tftpClient{g: g, port: 2000}).get("broken")
			if err != nil || r.errCode != errUndefined || strings.Contains(r.errText, "secret") {
				t.Errorf("error %d %q, %v", r.errCode, r.errText, err)
			}
			if e := w.event(EventError); !strings.Contains(e.Detail, "secret") {
				t.Errorf("event %+v", e)
			}
		})
	})
	t.Run("a ROM that does not acknowledge the last block", func(t *testing.T) {
		cfg := testConfig()
		cfg.Files = bigFS(100)
		cfg.Retries = 1
		w := newWorld(t, cfg)
		g := w.join("guest", guestMAC, guestAddr)
		g.sendUDP(2000, portTFTP, rrq("big", "octet"))
		if e := w.event(EventDone); e.Bytes != 100 || e.Detail == "" {
			t.Errorf("event %+v", e)
		}
	})
}

// brokenFS has a file that fails after 600 bytes.
type brokenFS struct{}

func (brokenFS) Open(string) (fs.File, error) { return &brokenFile{bigFile{size: 5000}}, nil }

type brokenFile struct{ bigFile }

func (f *brokenFile) Read(p []byte) (int, error) {
	if f.at == 600 {
		return 0, errors.New("read /secret/path: input/output error")
	}
	return f.bigFile.Read(p[:min(int64(len(p)), 600-f.at)])
}

// TestTFTPWindow drives a window by hand.
func TestTFTPWindow(t *testing.T) {
	cfg := testConfig()
	cfg.Files = bigFS(10 * 512)
	cfg.Timeout = patience
	w := newWorld(t, cfg)
	g := w.join("guest", guestMAC, guestAddr)
	g.sendUDP(2000, portTFTP, rrq("big", "octet", "windowsize", "4"))
	_, tid := g.data(2000)
	for _, step := range []struct {
		name string
		ack  int
		want []int // blocks that come
	}{
		{"the OACK is acknowledged", 0, []int{1, 2, 3, 4}},
		{"block 1 was lost", 0, []int{1, 2, 3, 4}},
		{"said twice, done once", 0, nil},
		{"block 3 was lost", 2, []int{3, 4, 5, 6}},
		{"said twice, done once", 2, nil},
		{"an old ACK", 1, nil},
		{"an ACK of what was not sent", 7, nil},
		{"a whole window", 6, []int{7, 8, 9, 10}},
		{"the next one", 10, []int{11}},
	} {
		g.sendUDP(2000, tid, ackPacket(step.ack))
		for _, want := range step.want {
			if p, _ := g.data(2000); p[1] != opDATA || int(binary.BigEndian.Uint16(p[2:])) != want {
				t.Fatalf("%s: got % x, want block %d", step.name, p[:4], want)
			}
		}
	}
	g.sendUDP(2000, tid, ackPacket(11))
	w.event(EventDone)
	if len(g.frames) != 0 {
		t.Errorf("%d frames too many", len(g.frames))
	}
}

// TestTFTPLimits proves that one guest cannot have all transfers, and all guests not any number.
func TestTFTPLimits(t *testing.T) {
	cfg := testConfig()
	cfg.Files = bigFS(1000)
	cfg.Timeout = patience
	cfg.MaxTransfers = perClient + 2
	w := newWorld(t, cfg)
	g := w.join("guest", guestMAC, guestAddr)
	for port := range uint16(perClient) {
		g.sendUDP(2000+port, portTFTP, rrq("big", "octet"))
		w.event(EventRequest)
	}
	g.sendUDP(3000, portTFTP, rrq("big", "octet"))
	if e := w.event(EventAborted); !strings.Contains(e.Detail, "too many") {
		t.Errorf("event %+v", e)
	}
	for w.server.tftpRunning.Load() > perClient { // the one that was ended takes its time
		time.Sleep(time.Millisecond)
	}
	for n := range byte(3) {
		g := w.join(fmt.Sprint(n), nth(n).MAC, addrN(50+n))
		g.sendUDP(2000, portTFTP, rrq("big", "octet"))
		p, _ := g.data(2000)
		if refused := p[1] == opERROR; refused != (n == 2) {
			t.Errorf("guest %d got % x", n, p[:4])
		}
	}
}

// TestTFTPCase proves that names are found as Windows' and DOS' heirs ask for them.
func TestTFTPCase(t *testing.T) {
	cfg := testConfig()
	cfg.Files = fstest.MapFS{"Boot/BCD": {Data: []byte("bcd")}, "boot.ipxe": {Data: []byte("x")}}
	w := newWorld(t, cfg)
	g := w.join("guest", guestMAC, guestAddr)
	for i, name := range []string{"Boot/BCD", "/boot/bcd", `\BOOT\bcd`, `\Boot\.\BCD`, "Boot//BCD", "Boot/BCD\xff"} {
		r, err := (&tftpClient{g: g, port: uint16(2000 + i)}).get(name)
		if err != nil || string(r.data) != "bcd" {
			t.Errorf("%q: %q, error %d, %v", name, r.data, r.errCode, err)
		}
	}
}

// TestTFTPProgress proves that a transfer that takes its time shows progress.
func TestTFTPProgress(t *testing.T) {
	cfg := testConfig()
	cfg.Files = bigFS(2000)
	cfg.Timeout = patience
	w := newWorld(t, cfg)
	g := w.join("guest", guestMAC, guestAddr)
	g.sendUDP(2000, portTFTP, rrq("big", "octet"))
	_, tid := g.data(2000)
	g.sendUDP(2000, tid, ackPacket(1))
	if e := w.event(EventProgress); e.Bytes != 512 || e.Size != 2000 {
		t.Errorf("event %+v", e)
	}
}

// The four defects of github.com/pin/tftp v3.2.0 in single-port mode that a guest could reach without
// the gate. Each test makes the library serve, and repeats what crashed or stalled it.

// TestLibraryDefectCloseRace: "send on closed channel", when duplicate ACKs arrive while the library
// closes the queue of a transfer that has just ended.
func TestLibraryDefectCloseRace(t *testing.T) {
	cfg := testConfig()
	cfg.Files = bigFS(700)
	w := newWorld(t, cfg, func(s *Server) { s.libraryServesOctet = true })
	g := w.join("guest", guestMAC, guestAddr)
	for i := range 300 {
		c := &tftpClient{g: g, port: uint16(2000 + i), copies: 8}
		if r, err := c.get("big"); err != nil || len(r.data) != 700 {
			t.Fatalf("transfer %d: %d bytes, %v", i, len(r.data), err)
		}
		if e := w.event(EventDone); e.Bytes != 700 {
			t.Fatalf("transfer %d: %+v", i, e)
		}
	}
}

// TestLibraryDefectAnticipate: "close of closed channel" in every transfer with SetAnticipate. Windows
// are never the library's business, however they are asked for.
func TestLibraryDefectAnticipate(t *testing.T) {
	cfg := testConfig()
	cfg.Files = bigFS(5000)
	w := newWorld(t, cfg, func(s *Server) { s.libraryServesOctet = true })
	g := w.join("guest", guestMAC, guestAddr)
	for i, rq := range [][]byte{
		rrq("big", "octet", "windowsize", "4"), rrq("big", "octet", "WindowSize", "0"), rrq("big", "netascii", "windowsize", "16"),
	} {
		r, err := (&tftpClient{g: g, port: uint16(2000 + i)}).request(rq)
		if _, accepted := r.oack["windowsize"]; err != nil || r.errCode != -1 || accepted != (i == 0) {
			t.Errorf("request %d: OACK %v, error %d, %v", i, r.oack, r.errCode, err)
		}
		w.event(EventDone)
	}
}

// TestLibraryDefectOACK: "index out of range" for a blksize of 900 zeros and a 512, which the library
// copies into an OACK of 516 bytes.
func TestLibraryDefectOACK(t *testing.T) {
	cfg := testConfig()
	cfg.Files = bigFS(5000)
	w := newWorld(t, cfg, func(s *Server) { s.libraryServesOctet = true })
	g := w.join("guest", guestMAC, guestAddr)
	zeros := strings.Repeat("0", 900)
	r, err := (&tftpClient{g: g, port: 2000}).get("big", "blksize", zeros+"512", "tsize", "0000")
	if err != nil || len(r.data) != 5000 || r.oack["blksize"] != "512" || r.oack["tsize"] != "5000" {
		t.Errorf("%d bytes, OACK %v, %v", len(r.data), r.oack, err)
	}
	w.event(EventDone)
}

// TestLibraryDefectCollapse: a client that sends each ACK three times got a block per time-out, since
// the queue has one place and the duplicates were in it.
func TestLibraryDefectCollapse(t *testing.T) {
	cfg := testConfig()
	cfg.Files = bigFS(1500 * 512)
	cfg.Timeout = time.Hour // one lost ACK, and the transfer stands
	w := newWorld(t, cfg, func(s *Server) { s.libraryServesOctet = true })
	g := w.join("guest", guestMAC, guestAddr)
	r, err := (&tftpClient{g: g, port: 2000, copies: 3}).get("big")
	if err != nil || r.blocks != 1501 {
		t.Errorf("%d blocks, %v", r.blocks, err)
	}
	w.event(EventDone)
}

// TestACKDoesNotAllocate holds the lock step to its word: from the frame with the ACK to the frame with
// the next block, through the switch and the reader's goroutine, no allocation.
func TestACKDoesNotAllocate(t *testing.T) {
	cfg := testConfig()
	cfg.Files = bigFS(1 << 30)
	w := newWorld(t, cfg)
	c := &lockstep{acked: make(chan uint32, 16)}
	m, err := w.sw.Join("client", c, vswitch.PortOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.in = m.NewIngress()
	src := netip.AddrPortFrom(guestAddr, 2000)
	f := udpFrame(guestMAC, serverMAC, src, netip.AddrPortFrom(testServer, portTFTP), rrq("big", "octet", "blksize", "1468"))
	c.in.Forward([]vswitch.Frame{{Head: f, Len: len(f)}})
	f = udpFrame(guestMAC, serverMAC, src, netip.AddrPortFrom(testServer, uint16(<-c.acked>>16)), ackPacket(0))
	f[40], f[41] = 0, 0 // no checksum: the block changes
	frames := []vswitch.Frame{{Head: f, Len: len(f)}}
	block := uint16(0)
	step := func() {
		binary.BigEndian.PutUint16(f[44:], block)
		c.in.Forward(frames)
		if block++; uint16(<-c.acked) != block {
			t.Fatal("not the next block")
		}
	}
	if n := testing.AllocsPerRun(2000, step); n != 0 {
		t.Errorf("%v allocations for a block, want 0", n)
	}
}

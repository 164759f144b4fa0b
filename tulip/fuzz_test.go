package tulip_test

import (
	"encoding/binary"
	"testing"

	"polder/tulip"
	tt "polder/tulip/tuliptest"
)

// watchBus is a bus that counts, and that fails the test on an access outside of what
// the chip may touch: memory while it is granted, that is, while bus mastering is on.
type watchBus struct {
	*tt.RAM
	t       *testing.T
	granted bool
	steps   int
}

func (b *watchBus) use(addr uint32, n int) {
	b.steps++
	if n <= 0 || n > 2*2048 {
		b.t.Fatalf("DMA of %d bytes at %#x", n, addr)
	}
	if uint64(addr)+uint64(n) > 1<<32 {
		b.t.Fatalf("DMA past 4 GiB: %d bytes at %#x", n, addr)
	}
	if !b.granted {
		b.t.Fatalf("DMA without bus mastering: %d bytes at %#x", n, addr)
	}
}

func (b *watchBus) Window(addr uint32, n int) []byte {
	b.use(addr, n)
	return b.RAM.Window(addr, n)
}

func (b *watchBus) Read(addr uint32, p []byte) error {
	b.use(addr, len(p))
	return b.RAM.Read(addr, p)
}

func (b *watchBus) Write(addr uint32, p []byte) error {
	b.use(addr, len(p))
	return b.RAM.Write(addr, p)
}

// The memory of a fuzzed machine: small and low, so that random addresses often hit.
const (
	fuzzBase = 0x100
	fuzzSize = 0x1000
)

// maxSteps bounds the bus accesses of one call. The most is made by a batch of frames
// of many descriptors without window: fetch twice, two buffers, status, and all this
// once more to receive a frame in loopback.
const maxSteps = 16 * 1024

// Operations of a program, one byte each, followed by their operands.
const (
	opWriteCSR    = iota // n, value
	opReadCSR            // n
	opWriteIO            // offset, size, value
	opWriteConfig        // offset, size, value
	opPoll               // batch size: PollTx
	opFinish             // frames: FinishTx
	opReceive            // length, destination
	opTick               // time
	opPutLong            // address, value
	opDesc               // address, control, two addresses: a descriptor with OWN
	opLink               // up or down
	opReset              //
	opState              // move to another chip
	opIndirect           // map or unmap memory
	opCount
)

// program reads operands from the fuzzer's bytes; it ends when they do.
type program struct{ p []byte }

func (p *program) byte() byte {
	if len(p.p) == 0 {
		return 0
	}
	b := p.p[0]
	p.p = p.p[1:]
	return b
}

func (p *program) word() uint32 {
	return uint32(p.byte()) | uint32(p.byte())<<8
}

func (p *program) long() uint32 { return p.word() | p.word()<<16 }

// FuzzProgram runs a program of register and configuration accesses, frames, ticks and
// stores to memory. Whatever it does, the chip does not panic, keeps its DMA within
// the map it was granted, does a bounded number of steps for each call, and holds INTA
// where CSR5 and CSR7 say.
func FuzzProgram(f *testing.F) {
	for _, seed := range fuzzSeeds() {
		f.Add(false, seed)
		f.Add(true, seed)
	}
	f.Fuzz(func(t *testing.T, strict bool, input []byte) {
		bus := &watchBus{RAM: tt.NewRAM(fuzzBase, fuzzSize), t: t}
		cfg := tulip.Config{MAC: tt.Station, StrictINTA: strict, ROMSize: 64 << 10, SpillFCS: strict}
		chip := tulip.New(bus, cfg)
		var (
			batch [16]tulip.TxFrame
			frame [4096]byte
			now   int64
		)
		p := program{input}
		for len(p.p) > 0 {
			bus.steps = 0
			switch op := p.byte() % opCount; op {
			case opWriteCSR:
				chip.WriteCSR(int(p.byte()%16), p.long(), now)
			case opReadCSR:
				chip.ReadCSR(int(p.byte()%16), now)
			case opWriteIO:
				chip.WriteIO(int(p.byte()), int(p.byte()%5), p.long(), now)
			case opWriteConfig:
				off, size, v := int(p.byte()), 1<<(p.byte()%3), p.long()
				chip.WriteConfig(off, size, v)
				bus.granted = chip.ReadConfig(4, 1)&4 != 0
			case opPoll:
				n := chip.PollTx(batch[:p.byte()%17], now)
				for i, fr := range batch[:n] {
					checkTxFrame(t, i, fr)
				}
			case opFinish:
				chip.FinishTx(int(p.byte())-1, now)
			case opReceive:
				n := int(p.word() % uint32(len(frame)))
				copy(frame[:], tt.Station[:])
				frame[p.byte()%6] ^= p.byte()
				cut := n / 3
				chip.Receive([][]byte{frame[:cut], frame[cut:n]}, now)
			case opTick:
				now += int64(p.long() >> (p.byte() % 32))
				chip.Tick(now)
			case opPutLong:
				bus.PutUint32(fuzzBase+p.word()%(fuzzSize/4)*4, p.long())
			case opDesc:
				at := fuzzBase + p.word()%(fuzzSize/16)*16
				bus.PutUint32(at, tt.OWN)
				bus.PutUint32(at+4, p.long())
				bus.PutUint32(at+8, p.word())
				bus.PutUint32(at+12, p.word())
			case opLink:
				chip.SetLink(p.byte()&1 != 0)
			case opReset:
				chip.Reset()
				bus.granted = false
			case opState:
				s := chip.State()
				bus.INTA = false
				chip = tulip.New(bus, cfg)
				chip.SetState(s)
				if got := chip.State(); got != s {
					t.Fatalf("state\n got %+v\nwant %+v", got, s)
				}
			case opIndirect:
				bus.Indirect = p.byte()&1 != 0
			}
			if bus.steps > maxSteps {
				t.Fatalf("%d bus accesses in one call", bus.steps)
			}
			checkINTA(t, chip, bus.INTA, strict)
			if at, ok := chip.Deadline(); ok && at <= now-int64(1)<<32 {
				t.Fatalf("deadline %d at %d", at, now)
			}
		}
	})
}

// checkTxFrame wants a frame that a host can forward.
func checkTxFrame(t *testing.T, i int, f tulip.TxFrame) {
	t.Helper()
	n := 0
	for _, p := range f.Parts {
		if len(p) == 0 {
			t.Fatalf("frame %d has an empty part", i)
		}
		n += len(p)
	}
	if n != f.Len || n < 60 || n > 18<<10 {
		t.Fatalf("frame %d: %d bytes in parts, Len %d", i, n, f.Len)
	}
}

// checkINTA wants the summaries and the pin to follow from CSR5 and CSR7.
func checkINTA(t *testing.T, chip *tulip.Chip, pin, strict bool) {
	t.Helper()
	s := chip.State()
	csr5, csr7 := s.CSR[5], s.CSR[7]
	const normal, abnormal = 0x4845, 0x27aa
	nis, ais := csr5&csr7&normal != 0, csr5&csr7&abnormal != 0
	if nis != (csr5&tt.NIS != 0) || ais != (csr5&tt.AIS != 0) {
		t.Fatalf("CSR5 = %#x with CSR7 = %#x: wrong summaries", csr5, csr7)
	}
	want := nis || ais
	if strict {
		want = nis && csr7&tt.NIS != 0 || ais && csr7&tt.AIS != 0
	}
	if pin != want {
		t.Fatalf("pin %v with CSR5 = %#x, CSR7 = %#x, strict %v", pin, csr5, csr7, strict)
	}
}

// fuzzSeeds returns programs that get the chip going.
func fuzzSeeds() [][]byte {
	var p []byte
	long := func(v uint32) []byte { return binary.LittleEndian.AppendUint32(nil, v) }
	word := func(v uint16) []byte { return binary.LittleEndian.AppendUint16(nil, v) }
	do := func(op byte, operands ...[]byte) {
		p = append(p, op)
		for _, o := range operands {
			p = append(p, o...)
		}
	}
	csr := func(n byte, v uint32) { do(opWriteCSR, []byte{n}, long(v)) }
	desc := func(i uint16, control uint32, addr1, addr2 uint16) {
		do(opDesc, word(i), long(control), word(addr1), word(addr2))
	}
	up := func(mode uint32) {
		p = nil
		do(opWriteConfig, []byte{4, 1}, long(0x147))
		csr(0, 1)
		csr(7, 0x1ffff)
		csr(3, 0x100)
		csr(4, 0x200)
		csr(6, mode)
	}
	pump := func() {
		csr(1, 0)
		do(opPoll, []byte{16})
		do(opFinish, []byte{17})
		do(opPoll, []byte{16})
	}
	receive := func(n uint16) { do(opReceive, word(n), []byte{0, 0}) }
	const on = tt.ST | tt.SR | tt.PR

	var seeds [][]byte
	up(on)
	desc(0, 512|tt.CH, 0x400, 0x110)
	desc(1, 512|512<<11|tt.ER, 0x600, 0x800)
	desc(16, tt.SET|192, 0xa00, 0)
	desc(17, tt.FS|tt.LS|tt.IC|100|100<<11, 0xa00, 0xb00)
	desc(18, tt.FS|200, 0xa00, 0)
	desc(19, tt.LS|tt.ER|200, 0xa00, 0)
	pump()
	receive(1000)
	receive(100)
	csr(5, 0xffffffff)
	csr(2, 0)
	seeds = append(seeds, p)

	up(on | 1<<10) // internal loopback, odd byte orders, gaps
	csr(0, 1<<20|1<<7|3<<2|1<<17)
	desc(0, 512|tt.CH, 0x400, 0x110)
	desc(16, tt.FS|tt.LS|tt.IC|tt.ER|100, 0xa00, 0)
	pump()
	do(opTick, long(0xffffffff), []byte{4})
	do(opState)
	do(opIndirect, []byte{0})
	pump()
	csr(6, 0)
	seeds = append(seeds, p)

	up(on | 2<<10) // external loopback, timer, addresses out of memory
	csr(11, 0x10010)
	desc(16, tt.FS|tt.LS|100, 0xa00, 0)
	desc(17, tt.FS|tt.LS|100, 0xffff, 0)
	pump()
	do(opTick, long(0xffffffff), []byte{8})
	do(opLink, []byte{0})
	receive(60)
	do(opReset)
	seeds = append(seeds, p)

	p = nil // serial lines
	for i := range byte(40) {
		do(opWriteIO, []byte{0x48, 4}, long(0x4801|uint32(i%4)<<1|uint32(i)<<16))
		do(opReadCSR, []byte{9})
	}
	return append(seeds, p)
}

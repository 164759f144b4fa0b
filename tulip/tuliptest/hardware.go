package tuliptest

import (
	"bytes"

	"polder/tulip"
)

// Hardware is an adapter as a driver and the other end of its cable see it. Registers
// behave as if the adapter had finished whatever an access started before the access
// returns; an implementation in another process has to wait for that.
type Hardware interface {
	ReadCSR(n int) uint32
	WriteCSR(n int, v uint32)
	ReadConfig(off, size int) uint32
	WriteConfig(off, size int, v uint32)

	// ReadMem and WriteMem are the guest's loads and stores. MemBase is the address of
	// at least 256 KiB of memory that the driver may use.
	ReadMem(addr uint32, p []byte)
	WriteMem(addr uint32, p []byte)
	MemBase() uint32

	// Interrupt returns the level of the interrupt pin.
	Interrupt() bool

	// Transmitted returns the next frame that the adapter put on the wire, or nil if
	// there is none.
	Transmitted() []byte

	// Inject puts a frame, without FCS, on the wire to the adapter.
	Inject(frame []byte)
}

// Bare is a chip and its memory, with nothing between them.
type Bare struct {
	*RAM
	Chip *tulip.Chip
	Now  int64 // what the chip is told about the time, in nanoseconds

	// Last is what became of the last frame of Inject.
	Last tulip.RxResult

	// Hold keeps transmitted frames in the chip: registers then do not start
	// the transmitter's work, Pump does.
	Hold bool

	sent  [][]byte
	batch [16]tulip.TxFrame
}

var _ Hardware = (*Bare)(nil)

// NewBare returns a powered-on chip with 512 KiB of memory at 1 MiB.
func NewBare(cfg tulip.Config) *Bare {
	b := &Bare{RAM: NewRAM(1<<20, 512<<10)}
	b.Chip = tulip.New(b.RAM, cfg)
	return b
}

// Pump lets the transmitter work until it has nothing left to do.
func (b *Bare) Pump() {
	for b.Chip.TxPending() {
		n := b.Chip.PollTx(b.batch[:], b.Now)
		b.take(n)
		b.Chip.FinishTx(n, b.Now)
	}
}

// take copies the first n frames of the batch.
func (b *Bare) take(n int) {
	for _, f := range b.batch[:n] {
		b.sent = append(b.sent, bytes.Join(f.Parts, nil))
	}
}

func (b *Bare) pump() {
	if !b.Hold {
		b.Pump()
	}
}

// ReadCSR implements Hardware.
func (b *Bare) ReadCSR(n int) uint32 { return b.Chip.ReadCSR(n, b.Now) }

// WriteCSR implements Hardware.
func (b *Bare) WriteCSR(n int, v uint32) {
	b.Chip.WriteCSR(n, v, b.Now)
	b.pump()
}

// ReadConfig implements Hardware.
func (b *Bare) ReadConfig(off, size int) uint32 { return b.Chip.ReadConfig(off, size) }

// WriteConfig implements Hardware.
func (b *Bare) WriteConfig(off, size int, v uint32) {
	b.Chip.WriteConfig(off, size, v)
	b.pump()
}

// MemBase implements Hardware.
func (b *Bare) MemBase() uint32 { return b.Base }

// Interrupt implements Hardware.
func (b *Bare) Interrupt() bool { return b.INTA }

// Transmitted implements Hardware.
func (b *Bare) Transmitted() []byte {
	if len(b.sent) == 0 {
		return nil
	}
	f := b.sent[0]
	b.sent = b.sent[1:]
	return f
}

// Inject implements Hardware.
func (b *Bare) Inject(frame []byte) {
	b.Last = b.Chip.Receive([][]byte{frame}, b.Now)
	b.pump()
}

// Advance lets ns nanoseconds pass, stopping at the chip's deadlines on the way.
func (b *Bare) Advance(ns int64) {
	end := b.Now + ns
	for {
		at, ok := b.Chip.Deadline()
		if !ok || at > end {
			break
		}
		b.Now = max(at, b.Now)
		b.Chip.Tick(b.Now)
		b.pump()
	}
	b.Now = end
}

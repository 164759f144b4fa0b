package tulip

import "math/bits"

// Bus is the machine as the chip sees it. Its methods are called from inside Chip
// methods, on the caller's goroutine, and must not call back into the chip.
type Bus interface {
	// Window returns guest memory [addr, addr+n) itself, readable and writable, or
	// nil if it is not directly mapped as one piece. The chip uses the slice until
	// the Chip method returns; a window lent out in TxFrame.Parts is used until
	// FinishTx returns.
	Window(addr uint32, n int) []byte

	// Read fills p from guest memory at addr. An error is a PCI master abort.
	Read(addr uint32, p []byte) error

	// Write stores p to guest memory at addr. An error is a PCI master abort. The
	// bus must not keep p.
	Write(addr uint32, p []byte) error

	// SetINTA sets the level of the interrupt pin. It is called only on change; the
	// level of a new chip is false.
	SetINTA(asserted bool)
}

// Config is what a board designer chooses around the chip. The zero value, with a
// MAC, is Hyper-V's legacy network adapter with an MII PHY.
type Config struct {
	// MAC is the station address in the serial ROM. Addresses that start 02:00,
	// A0:00 or C0:00 look byte-swapped to Linux's driver and should be avoided.
	MAC [6]byte

	// SubsystemVendor and SubsystemID identify the board in configuration space.
	// Both zero means 0A00:2114, which Windows Vista and later require.
	SubsystemVendor, SubsystemID uint16

	// ROMSize is the size in bytes of the expansion ROM that the host maps at CBER;
	// it is rounded up to a power of two of at least 2 KiB, all that a base address
	// register can express. Zero means no ROM: CBER reads as zero.
	ROMSize uint32

	// StrictINTA gates the interrupt pin with CSR7<NIE> and CSR7<AIE> as the manual
	// says. By default any enabled event asserts it, as in Virtual PC: MINIX's driver
	// leaves NIE clear and waits for interrupts all the same. No driver is known to
	// depend on the gate.
	StrictINTA bool

	// SpillFCS lets the four FCS bytes of a received frame run over into a
	// descriptor of their own, as silicon does. By default they are cut off where
	// the frame itself fits: MINIX and KolibriOS have buffers of 1516 and 1514 bytes
	// and understand only frames that end in the descriptor they began in.
	SpillFCS bool
}

// Chip is one 21140A. It must be made by New. It is not safe for concurrent use.
type Chip struct {
	bus Bus
	cfg Config

	s    State
	inta bool // level last given to the bus

	tx txBatch // frames lent to the host between PollTx and FinishTx

	// Scratch, meaningless between calls. It is kept here because what is passed to a
	// Bus would otherwise be allocated for each frame.
	lw    [16]byte // one descriptor or longword on its way
	rx    rxFrame
	span  []byte // a buffer on its way through swap or Bus.Read
	loop  []byte // a loopback frame on its way from the transmitter to the receiver
	zeros [minFrame]byte
}

// Frame lengths in bytes, without FCS where not said otherwise.
const (
	headerLen = 14
	minFrame  = 60
	fcsLen    = 4
)

// New returns a chip after power-on: hardware reset, link up, and a serial ROM made
// from cfg.
func New(bus Bus, cfg Config) *Chip {
	if cfg.SubsystemVendor == 0 && cfg.SubsystemID == 0 {
		cfg.SubsystemVendor, cfg.SubsystemID = 0x0a00, 0x2114
	}
	if cfg.ROMSize != 0 {
		cfg.ROMSize = 1 << bits.Len32(max(cfg.ROMSize, 2<<10)-1)
	}
	c := &Chip{bus: bus, cfg: cfg}
	c.tx.parts = make([][]byte, 0, maxTxParts)
	c.s.SROM.load(sromImage(cfg))
	c.s.PHY.Link = true
	c.Reset()
	return c
}

// Reset is the PCI RST# pin: configuration space, registers and the PHY take their
// power-on values. The contents of the serial ROM and the link stay.
func (c *Chip) Reset() {
	c.resetConfig()
	c.s.PHY.reset()
	c.softReset()
}

// softReset is CSR0<SWR>: everything but configuration space, the serial ROM and the
// PHY. Frames in flight are forgotten without touching guest memory.
func (c *Chip) softReset() {
	c.tx.forget()
	for n, r := range csrs {
		c.s.CSR[n] = r.reset
	}
	c.s.Halted = false
	c.s.RxAt, c.s.TxAt, c.s.TxPollAt = 0, 0, 0
	c.s.TimerAt, c.s.TimerTick = 0, 0
	c.s.PortDirection, c.s.PortOutput = 0, 0
	c.s.Filter = Filter{}
	c.s.SROM.idle()
	c.s.MII = MII{Out: true}
	c.updateINTA()
}

// SetLink tells the PHY whether there is a link partner. Without a link received
// frames are dropped and transmitted ones vanish. The 21140A has no link interrupt:
// drivers see the change when they next read the PHY.
func (c *Chip) SetLink(up bool) { c.s.PHY.setLink(up) }

// raise sets event bits in CSR5; the caller goes on to updateINTA.
func (c *Chip) raise(events uint32) { c.s.CSR[5] |= events }

// updateINTA derives the interrupt summaries and the pin from CSR5 and CSR7. It is
// the only place that does, and every public method that may change either register
// ends with it.
func (c *Chip) updateINTA() {
	pending := c.s.CSR[5] & c.s.CSR[7]
	var summary uint32
	if pending&csr5Normal != 0 {
		summary |= csr5NIS
	}
	if pending&csr5Abnormal != 0 {
		summary |= csr5AIS
	}
	c.s.CSR[5] = c.s.CSR[5]&^(csr5NIS|csr5AIS) | summary

	level := summary != 0
	if c.cfg.StrictINTA {
		level = summary&c.s.CSR[7] != 0
	}
	if level != c.inta {
		c.inta = level
		c.bus.SetINTA(level)
	}
}

func (c *Chip) rs() uint32 { return c.s.CSR[5] & csr5RS >> csr5RSShift }
func (c *Chip) ts() uint32 { return c.s.CSR[5] & csr5TS >> csr5TSShift }

func (c *Chip) setRS(rs uint32) { c.s.CSR[5] = c.s.CSR[5]&^csr5RS | rs<<csr5RSShift }
func (c *Chip) setTS(ts uint32) { c.s.CSR[5] = c.s.CSR[5]&^csr5TS | ts<<csr5TSShift }

// canDMA reports whether the chip may touch guest memory. Without bus mastering the
// processes stay as they are and go on when it is enabled: a boot ROM's driver may
// leave the chip running while the operating system starts.
func (c *Chip) canDMA() bool {
	return !c.s.Halted && c.s.Config[cfCS/4]&cfcsMaster != 0
}

// abort is what a refused bus access does: FBE with error bits "master abort", both
// processes stopped, and no further access until software reset.
func (c *Chip) abort() {
	c.tx.forget()
	c.s.Halted = true
	c.s.Config[cfCS/4] |= cfcsRMA
	c.s.CSR[5] = c.s.CSR[5]&^csr5EB | csr5EBAbort
	c.setRS(rsStopped)
	c.setTS(tsStopped)
	c.raise(csr5FBE)
}

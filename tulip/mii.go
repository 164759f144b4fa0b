package tulip

// MII is the PHY's end of the management interface (IEEE 802.3, 22.2.4): a clock and
// one data line, both under CSR9.
type MII struct {
	Phase MIIPhase
	MDC   bool   // clock line, as last seen
	Out   bool   // level that the PHY drives; its line is pulled up
	Bits  uint8  // bits seen in this phase
	Shift uint32 // the command or data shifted in, or the data shifted out
	Reg   uint8  // register of the command
}

// MIIPhase is what the PHY does with the next clock edge.
type MIIPhase uint8

const (
	MIIIdle    MIIPhase = iota // waits for the zero of the start code
	MIIStart                   // waits for its one
	MIICommand                 // takes opcode, PHY and register address
	MIIRead                    // turnaround and data of a read
	MIIWrite                   // turnaround and data of a write
)

const (
	phyAddress = 1 // where Linux and the BSDs begin their search

	miiREAD  = 2 // opcodes
	miiWRITE = 1 //
)

// PHY is a 10/100 PHY with auto-negotiation (IEEE 802.3, 22.2.4 and 28.2.4), linked to a
// partner that can do all that it can.
type PHY struct {
	Link     bool   // there is a partner
	LinkLost bool   // there was none at some time since BMSR was last read
	BMCR     uint16 // register 0, basic control
	ANAR     uint16 // register 4, auto-negotiation advertisement
}

// Registers.
const (
	phyBMCR   = 0
	phyBMSR   = 1
	phyID1    = 2
	phyID2    = 3
	phyANAR   = 4
	phyANLPAR = 5
	phyANER   = 6
	phyPAR    = 25 // DP83840A: speed and duplex
)

const (
	bmcrReset     = 1 << 15
	bmcrAutoneg   = 1 << 12
	bmcrPowerDown = 1 << 11
	bmcrIsolate   = 1 << 10
	bmcrRW        = 0x7d80 // all but reset and restart, which clear themselves
	bmcrDefault   = 0x3100

	bmsrAbilities = 0x7809
	bmsrANDone    = 1 << 5
	bmsrLink      = 1 << 2

	anarRW      = 0xbfe0
	anarDefault = 0x01e1
	anlparLink  = 0x45e1
	anerLink    = 0x0001
	parFD100    = 0x0080
)

// clockSerial passes the lines of CSR9, just written as v, to the serial ROM and the
// PHY, and stores what they answer. Reads of CSR9 find it there: they have no effect
// of their own, and drivers use them as delays.
func (c *Chip) clockSerial(v uint32) {
	on := func(bits uint32) bool { return v&bits == bits }
	c.s.SROM.lines(on(csr9SR|csr9SRCS), on(csr9SRSK), on(csr9SRDI))

	mdio := on(csr9MDO)
	if on(csr9MII) {
		mdio = true
		if c.s.MII.Phase == MIIRead {
			mdio = c.s.MII.Out
		}
	}
	if on(csr9MDC) && !c.s.MII.MDC {
		c.s.MII.clock(mdio, &c.s.PHY)
	}
	c.s.MII.MDC = on(csr9MDC)
	if on(csr9MII) {
		mdio = c.s.MII.Out
	}

	v &^= csr9MDI
	if mdio {
		v |= csr9MDI
	}
	switch {
	case on(csr9SR):
		v &^= csr9SRDO
		if c.s.SROM.DO {
			v |= csr9SRDO
		}
	case on(csr9BR | csr9RD): // no boot ROM on this port
		v |= csr9Data
	}
	c.s.CSR[9] = v
}

// clock is a rising edge of MDC with the data line at the given level. Preambles need not
// be counted: a frame that was broken off ends within the 32 ones of the next one's,
// and frames without a preamble are understood too.
func (m *MII) clock(level bool, phy *PHY) {
	bit := uint32(0)
	if level {
		bit = 1
	}
	m.Bits++
	switch m.Phase {
	case MIIIdle:
		if !level {
			m.Phase = MIIStart
		}
	case MIIStart:
		if level {
			m.Phase, m.Bits, m.Shift = MIICommand, 0, 0
		}
	case MIICommand:
		m.Shift = m.Shift<<1 | bit
		if m.Bits == 12 {
			m.command(phy)
		}
	case MIIRead: // the second half of the turnaround, sixteen bits, then release
		switch {
		case m.Bits == 1:
			m.Out = false
		case m.Bits <= 17:
			m.Out = m.Shift&0x8000 != 0
			m.Shift <<= 1
		default:
			m.Phase, m.Out = MIIIdle, true
		}
	case MIIWrite: // two bits of turnaround, sixteen bits
		m.Shift = m.Shift<<1 | bit
		if m.Bits == 18 {
			phy.write(m.Reg, uint16(m.Shift))
			m.Phase = MIIIdle
		}
	}
}

// command acts on a complete command. One for another PHY is ignored: the line stays
// high, and the rest of its frame looks idle or is skipped as a write to nowhere.
func (m *MII) command(phy *PHY) {
	op, addr := m.Shift>>10, m.Shift>>5&31
	m.Reg, m.Bits = uint8(m.Shift&31), 0
	switch {
	case op == miiREAD && addr == phyAddress:
		m.Phase, m.Shift = MIIRead, uint32(phy.read(m.Reg))
	case op == miiWRITE:
		m.Phase, m.Shift = MIIWrite, 0
		if addr != phyAddress {
			m.Reg = phyNowhere
		}
	default:
		m.Phase = MIIIdle
	}
}

// phyNowhere is a register that does not exist.
const phyNowhere = 0xff

// reset restores the power-on values.
func (p *PHY) reset() {
	p.BMCR, p.ANAR = bmcrDefault, anarDefault
}

// up reports whether the PHY says that it has a link.
func (p *PHY) up() bool { return p.Link && p.BMCR&(bmcrPowerDown|bmcrIsolate) == 0 }

// setLink plugs or unplugs the partner.
func (p *PHY) setLink(up bool) {
	p.Link = up
	if !p.up() {
		p.LinkLost = true
	}
}

// read returns a register. The link bit of BMSR is latched low: a lost link shows at
// least once.
func (p *PHY) read(reg uint8) uint16 {
	negotiated := p.up() && p.BMCR&bmcrAutoneg != 0
	switch reg {
	case phyBMCR:
		return p.BMCR
	case phyBMSR:
		v := uint16(bmsrAbilities)
		if negotiated {
			v |= bmsrANDone
		}
		if p.up() && !p.LinkLost {
			v |= bmsrLink
		}
		p.LinkLost = !p.up()
		return v
	case phyID1: // National Semiconductor DP83840A
		return 0x2000
	case phyID2:
		return 0x5c01
	case phyANAR:
		return p.ANAR
	case phyANLPAR:
		if negotiated {
			return anlparLink
		}
	case phyANER:
		if negotiated {
			return anerLink
		}
	case phyPAR:
		return parFD100
	}
	return 0
}

// write stores a register. Reset and restart of auto-negotiation are done at once.
func (p *PHY) write(reg uint8, v uint16) {
	switch reg {
	case phyBMCR:
		if v&bmcrReset != 0 {
			p.reset()
			break
		}
		p.BMCR = v & bmcrRW
	case phyANAR:
		p.ANAR = v&anarRW | 1
	}
	if !p.up() {
		p.LinkLost = true
	}
}

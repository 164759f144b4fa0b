package tulip

// configRule is one longword of configuration space (HRM, "Configuration
// Registers"). Bits in neither mask are read only.
type configRule struct {
	name   string
	offset int
	reset  uint32
	rw     uint32
	w1c    uint32
}

// configRules lists the longwords that are not plain zero. Revision 0x20 is the
// 21140A's first step, the only one that MINIX and Windows Vista accept. The status
// has no capability list: drivers then leave power management alone. CBMA decodes
// 4 KiB, in which the 128 bytes of registers repeat, so that a hypervisor can map
// whole pages. CSID and CBER depend on the board.
var configRules = [...]configRule{
	{name: "CFID", offset: cfID, reset: 0x00091011},
	{name: "CFCS", offset: cfCS, reset: cfcsFBB | cfcsMedium,
		rw: cfcsIO | cfcsMemory | cfcsMaster | cfcsParity | cfcsSERR, w1c: cfcsErrors},
	{name: "CFRV", offset: cfRV, reset: 0x02000020},
	{name: "CFLT", offset: cfLT, rw: 0x0000ffff},
	{name: "CBIO", offset: cfBIO, reset: 1, rw: 0xffffff80},
	{name: "CBMA", offset: cfBMA, rw: 0xfffff000},
	{name: "CSID", offset: cfSID},
	{name: "CBER", offset: cfBER},
	{name: "CFIT", offset: cfIT, reset: 0x281401ff, rw: 0x000000ff},
	{name: "CFDA", offset: cfDA, rw: 0xc000ff00},
}

// resetConfig gives configuration space its power-on values. The subsystem
// identification comes from the first two words of the serial ROM, as in silicon.
func (c *Chip) resetConfig() {
	c.s.Config = [cfSize / 4]uint32{}
	for _, r := range configRules {
		c.s.Config[r.offset/4] = r.reset
	}
	c.s.Config[cfSID/4] = uint32(c.s.SROM.Words[0]) | uint32(c.s.SROM.Words[1])<<16
}

// configMasks returns the writable and write-one-to-clear bits of the longword at
// offset.
func (c *Chip) configMasks(offset int) (rw, w1c uint32) {
	if offset == cfBER && c.cfg.ROMSize != 0 {
		return -c.cfg.ROMSize | 1, 0
	}
	for _, r := range configRules {
		if r.offset == offset {
			return r.rw, r.w1c
		}
	}
	return 0, 0
}

// ReadConfig reads size bytes (1, 2 or 4) of configuration space at offset off, in
// little-endian order. Bytes without a register read as zero.
func (c *Chip) ReadConfig(off, size int) uint32 {
	var v uint32
	for i := range size {
		at := off + i
		if at >= 0 && at < cfSize {
			v |= c.s.Config[at/4] >> (at % 4 * 8) & 0xff << (i * 8)
		}
	}
	return v
}

// WriteConfig writes size bytes (1, 2 or 4) of configuration space at offset off, in
// little-endian order. Read-only bits keep their value.
func (c *Chip) WriteConfig(off, size int, v uint32) {
	for i := range size {
		at := off + i
		if at < 0 || at >= cfSize {
			continue
		}
		shift := at % 4 * 8
		rw, w1c := c.configMasks(at &^ 3)
		lane := uint32(0xff) << shift
		b := v >> (i * 8) & 0xff << shift
		old := c.s.Config[at/4]
		c.s.Config[at/4] = (old&^(rw&lane) | b&rw) &^ (b & w1c)
	}
}

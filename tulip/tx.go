package tulip

import "slices"

// TxFrame is one frame that the driver has queued, lent to the host.
type TxFrame struct {
	// Parts are the bytes of the frame in order, without FCS and padded to 60 bytes.
	// They lie in guest memory, where the guest may change them at any time, or in
	// memory of the chip, and are read only. They are valid until FinishTx returns.
	Parts [][]byte

	// Len is the sum of the lengths of Parts, 60 to 18432.
	Len int
}

// Limits of the transmit process.
const (
	txBudget    = 256                         // descriptors after which PollTx returns
	maxTxDescs  = 128                         // descriptors of one frame
	maxTxParts  = 3 * (txBudget + maxTxDescs) // two buffers each, and padding
	maxTxFrame  = 18 << 10                    // bytes of one frame
	maxTxJabber = 2560                        // bytes of one frame with CSR15<JCK>
	minScratch  = 4 << 10                     // bytes
	minAutoPoll = 200_000                     // nanoseconds between automatic polls
)

// autoPollPeriods are the periods of CSR0<TAP> in nanoseconds (HRM, "Bus Mode
// Register"). Those shorter than minAutoPoll are stretched to it.
var autoPollPeriods = [8]int64{0, 200_000, 800_000, 1_600_000, 12_800, 25_600, 51_200, 102_400}

// txItem is what stands at one place of the transmit list: a frame, a set-up frame,
// or descriptors to be given back unused.
type txItem struct {
	firstDesc, lastDesc int    // its descriptors, txBatch.descs[firstDesc:lastDesc]
	firstPart, lastPart int    // its buffers, txBatch.parts[firstPart:lastPart]
	len                 int    // bytes in its buffers
	control             uint32 // TDES1 of its last descriptor
	next                uint32 // the descriptor after it
}

// txBatch holds the frames lent out between PollTx and FinishTx.
type txBatch struct {
	frames  []txItem
	descs   []uint32 // addresses of descriptors
	parts   [][]byte // never grows: TxFrame.Parts point into it
	scratch []byte   // buffers that are not directly mapped
}

// forget drops the batch; its descriptors stay the chip's. The host may still be
// reading the parts, so that they are left alone.
func (t *txBatch) forget() { t.frames = t.frames[:0] }

// reset drops the batch when the host is done with its parts. They are cleared: slices
// of memory that is unmapped later must not be left for the garbage collector to find.
func (t *txBatch) reset() {
	t.forget()
	t.descs = t.descs[:0]
	clear(t.parts)
	t.parts = t.parts[:0]
	t.scratch = t.scratch[:0]
}

// room returns n bytes that stay valid until reset.
func (t *txBatch) room(n int) []byte {
	at := len(t.scratch)
	if cap(t.scratch)-at < n { // slices handed out keep the old array
		t.scratch, at = make([]byte, 0, max(2*cap(t.scratch), n, minScratch)), 0
	}
	t.scratch = t.scratch[:at+n]
	return t.scratch[at : at+n : at+n]
}

// txVerdict says what to do with a txItem.
type txVerdict int

const (
	txNothing txVerdict = iota // not all of it is the chip's: suspend
	txData                     // send it
	txSetup                    // load the filter from it
	txDrop                     // give it back unsent
	txJabber                   // too long: give it back with TO
	txAbort                    // the bus refused an access
)

// TxPending reports whether the transmit process has descriptors to look at, that is,
// whether PollTx should be called.
func (c *Chip) TxPending() bool { return c.ts() == tsRunning && c.canDMA() }

// PollTx fetches up to len(frames) complete frames and returns how many. Their
// descriptors stay the chip's until FinishTx; a batch that is not finished before the
// next PollTx is fetched again. Set-up frames, empty descriptors, and frames that do
// not reach the wire take effect inside, in list order. When the list is empty the
// transmit process suspends. PollTx looks at a few hundred descriptors at most; call
// again while TxPending.
func (c *Chip) PollTx(frames []TxFrame, now int64) int {
	c.tx.reset()
	at, n := c.s.TxAt, 0
	for looked := 0; looked < txBudget && n < len(frames) && c.TxPending(); {
		item, verdict := c.assemble(at)
		looked += max(1, item.lastDesc-item.firstDesc)

		onWire := verdict == txData && c.s.PHY.Link && c.s.CSR[6]&csr6OM != csr6OMInternal
		if onWire {
			c.tx.frames = append(c.tx.frames, item)
			frames[n] = TxFrame{Parts: c.tx.parts[item.firstPart:item.lastPart:item.lastPart], Len: item.len}
			at = item.next
			n++
			continue
		}
		if n > 0 { // whatever it is, it must wait for the frames before it
			break
		}
		c.act(item, verdict, now)
		c.tx.reset()
		at = c.s.TxAt
	}
	c.updateINTA()
	return n
}

// act does what an item asks that is not a frame for the wire.
func (c *Chip) act(item txItem, verdict txVerdict, now int64) {
	switch verdict {
	case txNothing:
		c.suspendTx(now)
	case txAbort:
		c.abort()
	case txSetup:
		c.loadFilter(item.control, c.tx.parts[item.firstPart:item.lastPart])
		c.closeTx(item, tdes0Setup)
	case txDrop:
		c.closeTx(item, 0)
	case txJabber:
		c.raise(csr5TJT)
		c.closeTx(item, tdes0ES|tdes0TO)
	case txData:
		switch {
		case c.s.CSR[6]&csr6OM == csr6OMInternal:
			c.copyLoop(item)
			if c.closeTx(item, 0) {
				c.deliverLoop(rdes0DTInternal)
			}
		case c.s.CSR[6]&csr6FD != 0: // nobody senses a carrier
			c.closeTx(item, 0)
		default:
			c.closeTx(item, tdes0ES|tdes0NC|tdes0LO)
		}
	}
}

// FinishTx closes the first n frames of the last PollTx, in order: their descriptors
// are given back and TI is raised where the driver asked for it. The others will be
// fetched again. When the list is empty now the transmit process suspends. After a
// reset, a stop or a new list base there is nothing left to close.
func (c *Chip) FinishTx(n int, now int64) {
	if !c.canDMA() {
		c.tx.forget()
	}
	n = min(n, len(c.tx.frames))
	all := n > 0 && n == len(c.tx.frames)
	for _, item := range c.tx.frames[:max(n, 0)] {
		loop := c.s.CSR[6]&csr6OM == csr6OMExternal
		if loop {
			c.copyLoop(item)
		}
		if !c.closeTx(item, 0) {
			break
		}
		if loop {
			c.deliverLoop(rdes0DTExternal)
		}
	}
	c.tx.reset()
	if all && c.TxPending() {
		switch d, err := c.fetch(c.s.TxAt); {
		case err != nil:
			c.abort()
		case !d.owned():
			c.suspendTx(now)
		}
	}
	c.updateINTA()
}

// assemble reads the item that begins with the descriptor at address at. It changes
// nothing but the batch's scratch, so that an item which is not complete yet, or comes
// too early, can be read again.
func (c *Chip) assemble(at uint32) (txItem, txVerdict) {
	t := &c.tx
	item := txItem{
		firstDesc: len(t.descs), lastDesc: len(t.descs),
		firstPart: len(t.parts), lastPart: len(t.parts),
		next: at,
	}
	for {
		first := item.firstDesc == item.lastDesc
		if slices.Contains(t.descs, at) { // the list has come round to a frame in flight
			if first {
				return item, txNothing
			}
			return item, txJabber // or to the frame's own beginning
		}
		d, err := c.fetch(at)
		if err != nil {
			return item, txAbort
		}
		if !d.owned() {
			return item, txNothing
		}
		setup, begins := d.control&tdes1SET != 0, d.control&tdes1FS != 0
		if !first && (setup || begins) { // the frame before it never ended
			return item, txDrop
		}

		t.descs = append(t.descs, at)
		item.lastDesc++
		item.control = d.control
		item.next = d.next(c.s.CSR[4], c.skip())
		if setup {
			if d.size1() >= setupLen && !c.gather(&item, d.addr1, setupLen) {
				return item, txAbort
			}
			return item, txSetup
		}
		if first && !begins { // an empty descriptor, or the rest of a broken frame
			return item, txDrop
		}
		if item.len+d.size1()+d.size2() > c.txLimit() || item.lastDesc-item.firstDesc > maxTxDescs {
			return item, txJabber
		}
		if !c.gather(&item, d.addr1, d.size1()) || !c.gather(&item, d.addr2, d.size2()) {
			return item, txAbort
		}
		if d.control&tdes1LS != 0 {
			return item, c.trim(&item)
		}
		at = item.next
	}
}

// txLimit returns the length in bytes at which the jabber timer cuts a frame off.
func (c *Chip) txLimit() int {
	if c.s.CSR[15]&(csr15JCK|csr15JBD) == csr15JCK {
		return maxTxJabber
	}
	return maxTxFrame
}

// gather appends the n bytes at addr to an item; false means that the bus refused.
func (c *Chip) gather(item *txItem, addr uint32, n int) bool {
	if n == 0 {
		return true
	}
	var p []byte
	if !c.bigEndianBuffers() {
		p = c.window(addr, n)
	}
	if p == nil {
		p = c.tx.room(n)
		if c.load(addr, p) != nil {
			return false
		}
	}
	c.addPart(item, p)
	return true
}

func (c *Chip) addPart(item *txItem, p []byte) {
	c.tx.parts = append(c.tx.parts, p)
	item.lastPart++
	item.len += len(p)
}

// trim makes a complete item ready for the wire: without the FCS that the driver has
// put there itself, and not shorter than Ethernet allows. What has no Ethernet header
// is not sent at all.
func (c *Chip) trim(item *txItem) txVerdict {
	if item.control&tdes1AC != 0 {
		keep := max(item.len-fcsLen, 0)
		for item.len > keep {
			last := &c.tx.parts[item.lastPart-1]
			cut := min(item.len-keep, len(*last))
			*last = (*last)[:len(*last)-cut]
			item.len -= cut
			if len(*last) == 0 {
				c.tx.parts = c.tx.parts[:item.lastPart-1]
				item.lastPart--
			}
		}
	}
	if item.len < headerLen {
		return txDrop
	}
	if item.len < minFrame {
		c.addPart(item, c.zeros[:minFrame-item.len])
	}
	return txData
}

// closeTx gives the descriptors of an item back in list order, the last one with
// status, raises TI if the driver wants it, and moves on to the next item. It reports
// whether the bus allowed it.
func (c *Chip) closeTx(item txItem, status uint32) bool {
	if c.s.Halted {
		return false
	}
	descs := c.tx.descs[item.firstDesc:item.lastDesc]
	for i, at := range descs {
		st := uint32(0)
		if i == len(descs)-1 {
			st = status
		}
		if c.release(at, st) != nil {
			c.abort()
			return false
		}
	}
	c.s.TxAt = item.next
	if item.control&tdes1IC != 0 && item.control&(tdes1LS|tdes1SET) != 0 {
		c.raise(csr5TI)
	}
	return true
}

// closeBatch closes all frames in flight: their bytes are on their way already.
func (c *Chip) closeBatch() {
	if c.canDMA() {
		for _, item := range c.tx.frames {
			if !c.closeTx(item, 0) {
				break
			}
		}
	}
	c.tx.forget()
}

// startTx is CSR6<ST> going from 0 to 1.
func (c *Chip) startTx() {
	if !c.s.Halted {
		c.setTS(tsRunning)
	}
}

// stopTx is CSR6<ST> going from 1 to 0. Drivers take their descriptors back as soon as
// the state reads as stopped, so that frames in flight are closed first.
func (c *Chip) stopTx() {
	c.closeBatch()
	if c.ts() != tsStopped {
		c.setTS(tsStopped)
		c.raise(csr5TPS)
	}
}

// suspendTx is the running process meeting a descriptor that is not the chip's. TU is
// an edge: polls that still find nothing do not raise it again.
func (c *Chip) suspendTx(now int64) {
	c.setTS(tsSuspended)
	c.raise(csr5TU)
	c.scheduleAutoPoll(now)
}

// autoPoll returns the period of automatic polling in nanoseconds, or 0 for never.
func (c *Chip) autoPoll() int64 {
	period := autoPollPeriods[c.s.CSR[0]&csr0TAP>>csr0TAPShift]
	if period == 0 {
		return 0
	}
	return max(period, minAutoPoll)
}

// autoPolling reports whether a suspended process is polled automatically.
func (c *Chip) autoPolling() bool {
	return c.ts() == tsSuspended && c.autoPoll() != 0 && c.canDMA()
}

func (c *Chip) scheduleAutoPoll(now int64) {
	if c.ts() == tsSuspended {
		c.s.TxPollAt = now + c.autoPoll()
	}
}

// runAutoPoll looks at the current descriptor of a suspended process if it is time to.
func (c *Chip) runAutoPoll(now int64) {
	if !c.autoPolling() || now < c.s.TxPollAt {
		return
	}
	c.scheduleAutoPoll(now)
	switch d, err := c.fetch(c.s.TxAt); {
	case err != nil:
		c.abort()
	case d.owned():
		c.setTS(tsRunning)
	}
}

// copyLoop takes a private copy of a frame before its descriptors are given back.
func (c *Chip) copyLoop(item txItem) {
	c.loop = c.loop[:0]
	for _, p := range c.tx.parts[item.firstPart:item.lastPart] {
		c.loop = append(c.loop, p...)
	}
}

// deliverLoop receives the frame of copyLoop. The transmitter has closed it by then,
// and the receiver never starts the transmitter, so that neither meets the other
// half-way.
func (c *Chip) deliverLoop(loopback uint32) {
	c.rx.one[0] = c.loop
	c.receive(c.rx.one[:], loopback)
}

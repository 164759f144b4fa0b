package device

import (
	"encoding/binary"
	"runtime/debug"

	"polder/device/eventfd"
	"polder/device/virtq"
	"polder/vswitch"
)

// txBudget bounds the frames of one Pull of a transmit ring.
const txBudget = 64

// txRing is a transmit ring from the guest's point of view. A worker looks after it from its start to its stop. mu
// is held during a whole Pull: the memory that is lent to receivers stays while the ring runs.
type txRing struct {
	ring
	in *vswitch.Ingress // guarded by mu; nil: the adapter is on no switch

	kick  *eventfd.FD // nil: the driver does not kick
	watch watch       // its worker's

	chains [txBudget]virtq.Chain
	frames [txBudget]vswitch.Frame
	heads  [txBudget][headLen]byte
	bodies [txBudget][][]byte
}

// Pull takes up to budget frames, forwards them and gives their buffers back. It returns how many there were; 0 means that
// there is nothing to send.
func (t *txRing) Pull(budget int) (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.q == nil || t.q.Err() != nil {
		return 0
	}
	defer t.catch(debug.SetPanicOnFault(true))
	n, err := t.q.Take(t.chains[:min(budget, txBudget)])
	if err != nil {
		t.fail(err)
	}
	if n == 0 {
		return 0
	}
	if t.enabled && t.in != nil {
		for i := range n {
			t.lend(i)
		}
		t.in.Forward(t.frames[:n])
	} else {
		t.stopped.Add(uint64(n))
	}
	t.q.DoneAll(t.chains[:n])
	t.publish()
	return n
}

// lend makes frames[i] of chains[i]: header and head private, the rest in guest memory. A chain without a
// whole header becomes an empty frame, which the switch counts as too short.
func (t *txRing) lend(i int) {
	out := t.chains[i].Out
	f := &t.frames[i]
	if len(out) == 1 && t.headerLen == maxHeader && len(out[0]) >= maxHeader {
		if b := out[0]; binary.LittleEndian.Uint16(b) == 0 {
			b = b[maxHeader:]
			k := copy(t.heads[i][:], b)
			f.Head = t.heads[i][:k]
			f.Body = f.Body[:0]
			if k < len(b) {
				t.bodies[i] = append(t.bodies[i][:0], b[k:])
				f.Body = t.bodies[i]
			}
			f.Len = len(b)
			f.Offload = vswitch.Offload{}
			return
		}
	}
	var header [maxHeader]byte
	got := 0
	var rest []byte // of the part in which the header ends
	for got < t.headerLen && len(out) > 0 {
		k := copy(header[got:t.headerLen], out[0])
		got += k
		rest, out = out[0][k:], out[1:]
	}
	if got < t.headerLen {
		*f = vswitch.Frame{}
		return
	}
	head, body := t.heads[i][:0], t.bodies[i][:0]
	n := 0
	for {
		n += len(rest)
		k := min(headLen-len(head), len(rest))
		head = append(head, rest[:k]...)
		if k < len(rest) {
			body = append(body, rest[k:])
		}
		if len(out) == 0 {
			break
		}
		rest, out = out[0], out[1:]
	}
	t.bodies[i] = body
	*f = vswitch.Frame{Head: head, Body: body, Len: n}
	if header[0]|header[1] != 0 {
		f.Offload = t.offload(&header)
	}
}

// offload reads a header. The switch checks it against the frame; here, it is only compared with what was
// negotiated. hdr_len is not read: the switch finds the headers itself.
func (t *txRing) offload(h *[maxHeader]byte) vswitch.Offload {
	o := vswitch.Offload{
		NeedsChecksum:  h[0]&hdrNeedsChecksum != 0,
		GSO:            vswitch.GSOKind(h[1] &^ hdrECN),
		GSOSize:        binary.LittleEndian.Uint16(h[4:]),
		ChecksumStart:  binary.LittleEndian.Uint16(h[6:]),
		ChecksumOffset: binary.LittleEndian.Uint16(h[8:]),
	}
	var needs uint64
	if o.NeedsChecksum {
		needs = featureCsum
	}
	switch o.GSO {
	case vswitch.GSONone:
	case vswitch.GSOTCPv4:
		needs |= featureHostTSO4
	case vswitch.GSOTCPv6:
		needs |= featureHostTSO6
	case vswitch.GSOUDP:
		needs |= featureHostUSO
	}
	if needs&^t.dev.features != 0 {
		return vswitch.Offload{GSO: refused}
	}
	return o
}

// refused is a kind of segmentation that there is not: the switch drops the frame, and counts it as one with an offload that
// is not to be believed.
const refused vswitch.GSOKind = 0xff

// Arm asks the driver to kick for the next frame, and reports whether one has arrived already.
func (t *txRing) Arm() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.q == nil || t.q.Err() != nil {
		return false
	}
	defer t.catch(debug.SetPanicOnFault(true))
	return t.q.Arm()
}

// disarm tells the driver that nobody sleeps.
func (t *txRing) disarm() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.q != nil && t.q.Err() == nil {
		defer t.catch(debug.SetPanicOnFault(true))
		t.q.Disarm()
	}
}

// end ends the ring's being looked after, which takes no longer than a few Pulls, and forgets what was lent.
func (t *txRing) end() {
	t.dev.config.Workers.remove(t)
	if t.kick != nil {
		t.kick.Close()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kick = nil
	t.chains = [txBudget]virtq.Chain{}
	t.frames = [txBudget]vswitch.Frame{}
	t.bodies = [txBudget][][]byte{}
}

package device

// The hypervisor's side of a synthetic adapter: what an attachment may ask of it. All of it runs
// on the attachment's goroutine.

import (
	"errors"
	"fmt"
	"os"

	"polder/device/eventfd"
	"polder/device/guestmem"
	"polder/device/vhostuser"
	"polder/device/virtq"
	"polder/vswitch"
)

// Features of the network device (virtio 5.1.3) and of any (6).
const (
	featureCsum       = 1 << 0 // the guest leaves checksums to us
	featureGuestCsum  = 1 << 1 // it does without them
	featureMTU        = 1 << 3
	featureGuestTSO4  = 1 << 7
	featureGuestTSO6  = 1 << 8
	featureGuestECN   = 1 << 9
	featureHostTSO4   = 1 << 11
	featureHostTSO6   = 1 << 12
	featureHostECN    = 1 << 13
	featureMergeable  = 1 << 15
	featureMQ         = 1 << 22
	featureAnyLayout  = 1 << 27 // of legacy drivers; the others always may
	featureIndirect   = 1 << 28
	featureEventIdx   = 1 << 29
	featureVersion1   = 1 << 32
	featurePacked     = 1 << 34
	featureInOrder    = 1 << 35
	featureGuestUSO4  = 1 << 54
	featureGuestUSO6  = 1 << 55
	featureHostUSO    = 1 << 56
	featuresAlways    = featureMergeable | featureAnyLayout | featureIndirect | featureEventIdx | featureVersion1 | featureInOrder
	featuresOfOffload = featureCsum | featureGuestCsum | featureGuestTSO4 | featureGuestTSO6 | featureGuestECN |
		featureHostTSO4 | featureHostTSO6 | featureHostECN | featureGuestUSO4 | featureGuestUSO6 | featureHostUSO
)

// What virtio permits as an MTU, in bytes (5.1.4.1).
const (
	minMTU = 68
	maxMTU = 65535
)

// Features implements vhostuser.Backend.
func (v *VirtioNet) Features() uint64 {
	f := uint64(featuresAlways)
	if !v.config.NoOffload {
		f |= featuresOfOffload
	}
	if !v.config.NoPacked {
		f |= featurePacked
	}
	if v.config.MTU != 0 {
		f |= featureMTU
	}
	if v.config.Pairs > 1 { // with one, User Mode Linux would look for a control queue, which QEMU keeps to itself
		f |= featureMQ
	}
	return f
}

// ProtocolFeatures implements vhostuser.Backend.
func (v *VirtioNet) ProtocolFeatures() uint64 {
	if v.config.MTU == 0 {
		return vhostuser.ProtocolAll &^ vhostuser.ProtocolNetMTU
	}
	return vhostuser.ProtocolAll
}

// QueuePairs implements vhostuser.Backend.
func (v *VirtioNet) QueuePairs() int { return v.config.Pairs }

// Attach implements vhostuser.Backend.
func (v *VirtioNet) Attach(peer string, hangUp func(cause error)) error {
	v.attachments.Add(1)
	v.hangUp.Store(&hangUp)
	v.state.Store(attached)
	v.log.Info("adapter attached", "peer", peer)
	return nil
}

// Detach implements vhostuser.Backend: the adapter forgets the guest's rings and memory.
func (v *VirtioNet) Detach(cause error) {
	v.state.Store(detached)
	v.hangUp.Store(nil)
	for i := range 2 * v.config.Pairs {
		if v.ring(i).q != nil {
			v.stop(i)
		}
	}
	if err := errors.Join(v.Reset(), v.mem.Close()); err != nil {
		v.log.Error("cannot unmap guest memory", "err", err)
	}
	v.log.Info("adapter detached", "cause", cause)
}

// Reset implements vhostuser.Backend.
func (v *VirtioNet) Reset() error { return errors.Join(v.SetFeatures(0), v.SetLog(nil)) }

// SetFeatures implements vhostuser.Backend.
func (v *VirtioNet) SetFeatures(features uint64) error {
	v.features = features
	var accepts vswitch.OffloadSet
	if features&featureGuestCsum != 0 { // without which the rest means nothing (virtio 5.1.3.1)
		accepts |= vswitch.OffloadChecksum
		if features&featureGuestTSO4 != 0 {
			accepts |= vswitch.OffloadTSO4
		}
		if features&featureGuestTSO6 != 0 {
			accepts |= vswitch.OffloadTSO6
		}
		if features&featureGuestECN != 0 {
			accepts |= vswitch.OffloadECN
		}
		if features&featureGuestUSO4 != 0 && features&featureGuestUSO6 != 0 { // the switch does not tell them apart
			accepts |= vswitch.OffloadUSO
		}
	}
	v.accepts.Store(uint32(accepts))
	return nil
}

// SetMemory implements vhostuser.Backend. Files that stay are not mapped again: guestmem sees to that.
func (v *VirtioNet) SetMemory(regions []vhostuser.MemRegion) error {
	if err := v.mem.Unmap(0, 0); err != nil {
		return err
	}
	for _, r := range regions {
		if err := v.mem.Map(guestmem.Region{GPA: r.GPA, Size: r.Size, File: r.File, Offset: r.Offset, Read: true, Write: true}); err != nil {
			return err
		}
	}
	return nil
}

// ring returns the ring of a number: receive and transmit rings take turns.
func (v *VirtioNet) ring(index int) *ring {
	if index%2 == 0 {
		return &v.rx[index/2].ring
	}
	return &v.tx[index/2].ring
}

// StartVring implements vhostuser.Backend.
func (v *VirtioNet) StartVring(c vhostuser.VringConfig) error {
	if c.Err != nil {
		c.Err.Close() // the end of the connection says it all
	}
	has := func(bit uint64) bool { return v.features&bit != 0 }
	kick, call, err := doorbells(c.Kick, c.Call)
	if err != nil {
		return fmt.Errorf("ring %d: %w", c.Index, err)
	}
	var q *virtq.Queue
	fault := guestmem.Guard(func() {
		q, err = virtq.New(&v.mem, virtq.Config{
			Num: c.Num, Desc: c.Desc, Driver: c.Avail, Device: c.Used, Base: c.Base,
			Sends: c.Index%2 == 1, Packed: has(featurePacked), EventIdx: has(featureEventIdx), InOrder: has(featureInOrder), Indirect: has(featureIndirect),
		})
		if err == nil {
			if v.dirty.bits != nil {
				q.SetLog(v.dirty.mark)
			}
			q.Disarm() // a receive ring is not waited for, and a worker is awake when it begins
		}
	})
	if err = errors.Join(fault, err); err != nil {
		if kick != nil {
			kick.Close()
		}
		call.close()
		return fmt.Errorf("ring %d: %w", c.Index, err)
	}
	r := v.ring(c.Index)
	r.mu.Lock()
	r.q, r.enabled, r.call = q, c.Enabled, call
	r.headerLen = legacyHeader
	if has(featureVersion1) || has(featureMergeable) {
		r.headerLen = maxHeader
	}
	r.merge = has(featureMergeable)
	r.mu.Unlock()
	if c.Index%2 == 0 {
		if kick != nil {
			kick.Close()
		}
		v.choose()
		return nil
	}
	t := v.tx[c.Index/2]
	t.kick = kick
	if err := v.config.Workers.add(t); err != nil {
		return fmt.Errorf("ring %d: %w", c.Index, err)
	}
	return nil
}

// doorbells takes two files over, either of which may be nil.
func doorbells(kickFile, callFile *os.File) (kick *eventfd.FD, c call, err error) {
	if kickFile != nil {
		if kick, err = eventfd.SignalOnly(kickFile); err != nil {
			if callFile != nil {
				callFile.Close()
			}
			return nil, call{}, fmt.Errorf("kick: %w", err)
		}
	}
	if c, err = newCall(callFile); err != nil {
		if kick != nil {
			kick.Close()
		}
		return nil, call{}, fmt.Errorf("call: %w", err)
	}
	return kick, c, nil
}

// StopVring implements vhostuser.Backend.
func (v *VirtioNet) StopVring(index int) (base uint32, err error) { return v.stop(index), nil }

// stop stops a ring that runs.
func (v *VirtioNet) stop(index int) (base uint32) {
	if index%2 == 1 {
		v.tx[index/2].end()
	}
	r := v.ring(index)
	r.mu.Lock()
	base = r.q.Base()
	r.q = nil
	r.call.close()
	if index%2 == 0 {
		clear(v.rx[index/2].buffers[:]) // of memory that may go
	}
	r.mu.Unlock()
	v.choose()
	return base
}

// SetVringEnable implements vhostuser.Backend.
func (v *VirtioNet) SetVringEnable(index int, on bool) error {
	r := v.ring(index)
	r.mu.Lock()
	r.enabled = on
	r.mu.Unlock()
	v.choose()
	return nil
}

// choose finds out which receive rings are active.
func (v *VirtioNet) choose() {
	active := []*rxRing{}
	for _, r := range v.rx {
		if r.q != nil && r.enabled { // which only this goroutine changes
			active = append(active, r)
		}
	}
	v.active.Store(&active)
}

// SetVringCall implements vhostuser.Backend.
func (v *VirtioNet) SetVringCall(index int, file *os.File) error {
	c, err := newCall(file)
	if err != nil {
		return fmt.Errorf("ring %d: call: %w", index, err)
	}
	r := v.ring(index)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.call.close()
	r.call = c
	if err := r.call.signal(); err != nil { // the old one may have been signalled when nobody listened any more
		return fmt.Errorf("ring %d: call: %w", index, err)
	}
	return nil
}

// SetVringLog implements vhostuser.Backend. Used rings are logged where they lie in guest memory, like all
// that is written there; the address in UsedLog is the same.
func (v *VirtioNet) SetVringLog(int, vhostuser.UsedLog) error { return nil }

// SetLog implements vhostuser.Backend. Nothing is written while the log changes, so that nothing is missing in it.
func (v *VirtioNet) SetLog(l *vhostuser.Log) error {
	var rings []*ring
	for _, t := range v.tx { // before receive rings, as a worker has them
		rings = append(rings, &t.ring)
	}
	for _, r := range v.rx {
		rings = append(rings, &r.ring)
	}
	for _, r := range rings {
		r.mu.Lock()
		defer r.mu.Unlock()
	}
	if err := v.dirty.set(l); err != nil {
		return err
	}
	var mark func(uint64, int)
	if l != nil {
		mark = v.dirty.mark
	}
	for _, r := range rings {
		if r.q != nil {
			r.q.SetLog(mark)
		}
	}
	return nil
}

// SetMTU implements vhostuser.Backend. The guest may have been told less than the network takes, and not more.
func (v *VirtioNet) SetMTU(mtu uint16) error {
	if int(mtu) > v.config.MTU {
		return fmt.Errorf("the guest was told an MTU of %d, and that of its network is %d", mtu, v.config.MTU)
	}
	return nil
}

// SendRARP implements vhostuser.Backend: a reverse ARP request by which the switch, and others behind
// it, learn where the address has gone (RFC 903).
func (v *VirtioNet) SendRARP(mac [6]byte) error {
	f := make([]byte, 0, 60)
	f = append(f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	f = append(f, mac[:]...)
	f = append(f, 0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3) // Ethernet, IPv4, request reverse
	f = append(f, mac[:]...)
	f = append(f, 0, 0, 0, 0)
	f = append(f, mac[:]...)
	f = f[:cap(f)]
	v.announceMu.Lock()
	defer v.announceMu.Unlock()
	if v.announce != nil {
		v.announce.Forward([]vswitch.Frame{{Head: f, Len: len(f)}})
	}
	return nil
}

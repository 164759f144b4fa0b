package vswitch

import (
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
)

// MaxVLAN is the highest VLAN identifier that a port can be put into; 4095 is
// reserved (IEEE 802.1Q-2018, table 9-2).
const MaxVLAN = 4094

// VLANMode says how a port takes part in VLANs.
type VLANMode uint8

// The modes of a port, with the fields of [VLAN] that each needs.
const (
	// VLANNone is a port that knows nothing of VLANs. Its frames belong to VLAN
	// 0, the one of untagged frames, whatever tags they carry. Those that carry
	// one go to other ports of this mode only: a guest does not get into a VLAN
	// by writing a tag.
	VLANNone VLANMode = iota

	// VLANAccess is a port in VLAN ID, which it does not see: it sends and gets
	// untagged frames.
	VLANAccess

	// VLANTrunk is a port that sees the VLANs of Allowed as tags, and VLAN
	// Native as untagged frames. Native 0 is VLAN 0, that of ports without VLAN.
	VLANTrunk

	// VLANIsolated is a port in the private VLAN of primary ID and secondary
	// Secondary (RFC 5517) that reaches promiscuous ports only. It sees no tags.
	VLANIsolated

	// VLANCommunity is a port of a private VLAN that reaches promiscuous ports
	// and those with the same Secondary. It sees no tags.
	VLANCommunity

	// VLANPromiscuous is a port of the private VLAN of primary ID that reaches
	// all ports whose Secondary is in Allowed, and the other promiscuous ports.
	// It sees no tags.
	VLANPromiscuous
	numVLANModes
)

var vlanModeNames = [numVLANModes]string{
	VLANNone:        "none",
	VLANAccess:      "access",
	VLANTrunk:       "trunk",
	VLANIsolated:    "isolated",
	VLANCommunity:   "community",
	VLANPromiscuous: "promiscuous",
}

// String returns the mode's name as operators see it, like "access".
func (m VLANMode) String() string {
	if m < numVLANModes {
		return vlanModeNames[m]
	}
	return fmt.Sprintf("VLANMode(%d)", uint8(m))
}

// VLAN is a port's place among VLANs. The zero value is [VLANNone]. Values can
// be compared.
//
// A trunk carries private VLANs as switches do among each other (RFC 5517):
// frames of an isolated or a community port with the secondary identifier as
// tag, those of a promiscuous port with the primary.
type VLAN struct {
	Mode      VLANMode
	ID        uint16  // access: the VLAN; isolated, community and promiscuous: the primary VLAN
	Native    uint16  // trunk: the VLAN of untagged frames
	Secondary uint16  // isolated, community: the secondary VLAN
	Allowed   VLANSet // trunk: the VLANs of tagged frames; promiscuous: the secondary VLANs
}

// check says what is wrong with v, if anything.
func (v *VLAN) check() error {
	needsID := v.Mode == VLANAccess || v.Mode.private()
	needsSecondary := v.Mode == VLANIsolated || v.Mode == VLANCommunity
	needsAllowed := v.Mode == VLANTrunk || v.Mode == VLANPromiscuous
	switch {
	case v.Mode >= numVLANModes:
		return fmt.Errorf("there is no VLAN mode %d", v.Mode)
	case needsID && !isVLAN(v.ID):
		return fmt.Errorf("VLAN mode %v needs an ID of 1 to %d, not %d", v.Mode, MaxVLAN, v.ID)
	case !needsID && v.ID != 0:
		return fmt.Errorf("VLAN mode %v has no ID", v.Mode)
	case v.Mode == VLANTrunk && v.Native > MaxVLAN:
		return fmt.Errorf("a native VLAN is 0 to %d, not %d", MaxVLAN, v.Native)
	case v.Mode != VLANTrunk && v.Native != 0:
		return fmt.Errorf("VLAN mode %v has no native VLAN", v.Mode)
	case needsSecondary && !isVLAN(v.Secondary):
		return fmt.Errorf("VLAN mode %v needs a secondary VLAN of 1 to %d, not %d", v.Mode, MaxVLAN, v.Secondary)
	case !needsSecondary && v.Secondary != 0:
		return fmt.Errorf("VLAN mode %v has no secondary VLAN", v.Mode)
	case needsSecondary && v.Secondary == v.ID, v.Mode == VLANPromiscuous && v.Allowed.Has(v.ID):
		return fmt.Errorf("VLAN %d cannot be primary and secondary", v.ID)
	case !needsAllowed && v.Allowed != VLANSet{}:
		return fmt.Errorf("VLAN mode %v has no allowed VLANs", v.Mode)
	case v.Allowed[0]&1 != 0 || v.Allowed[63]>>63 != 0:
		return fmt.Errorf("allowed VLANs are of 1 to %d", MaxVLAN)
	}
	return nil
}

func isVLAN(id uint16) bool { return id >= 1 && id <= MaxVLAN }

func (m VLANMode) private() bool {
	return m == VLANIsolated || m == VLANCommunity || m == VLANPromiscuous
}

// VLANSet is a set of VLAN identifiers: bit id%64 of word id/64. The zero value
// is empty. Values can be compared.
type VLANSet [64]uint64

// Add puts the identifiers first to last, which are at most 4095, into the set.
func (s *VLANSet) Add(first, last uint16) {
	for id := int(first); id <= int(last); id++ {
		s[id/64] |= 1 << (id % 64)
	}
}

// Has reports whether id is in the set.
func (s *VLANSet) Has(id uint16) bool { return s[id/64%64]>>(id%64)&1 != 0 }

// Len returns the number of identifiers in the set.
func (s *VLANSet) Len() int {
	n := 0
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	return n
}

// All calls yield for each identifier in the set, in ascending order, until it
// returns false.
func (s *VLANSet) All(yield func(id uint16) bool) {
	for i, w := range s {
		for ; w != 0; w &= w - 1 {
			if !yield(uint16(i*64 + bits.TrailingZeros64(w))) {
				return
			}
		}
	}
}

// String prints the set like "1-100,200", and the empty set as "".
func (s VLANSet) String() string {
	var b []byte
	for id := 0; id < 4096; id++ {
		if !s.Has(uint16(id)) {
			continue
		}
		first := id
		for id < 4095 && s.Has(uint16(id+1)) {
			id++
		}
		if len(b) > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, int64(first), 10)
		if id > first {
			b = append(b, '-')
			b = strconv.AppendInt(b, int64(id), 10)
		}
	}
	return string(b)
}

// ParseVLANSet reads a list of identifiers and ranges of 1 to [MaxVLAN] like
// "1-100,200". An empty string is the empty set.
func ParseVLANSet(text string) (VLANSet, error) {
	var s VLANSet
	if text == "" {
		return s, nil
	}
	for item := range strings.SplitSeq(text, ",") {
		from, to, isRange := strings.Cut(item, "-")
		first, err := parseVLAN(from)
		last := first
		if err == nil && isRange {
			last, err = parseVLAN(to)
		}
		if err != nil || last < first {
			return VLANSet{}, fmt.Errorf("vswitch: %q is not a VLAN or a range of VLANs like 1-100", item)
		}
		s.Add(first, last)
	}
	return s, nil
}

var errNoVLAN = errors.New("not a VLAN")

func parseVLAN(text string) (uint16, error) {
	n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 16)
	if err != nil || !isVLAN(uint16(n)) {
		return 0, errNoVLAN
	}
	return uint16(n), nil
}

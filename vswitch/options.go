package vswitch

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// PortOptions is what a port may do and what is done to its frames. The zero
// value is an ordinary port: it learns, and its frames go anywhere.
//
// A frame from the port is tested in the order of the fields from LinkDown to
// Bandwidth, and dropped with the reason of the first test it fails; then it is
// learned, looked up and tested by each port it is for: LinkDown, VLAN, ACL,
// MTU.
type PortOptions struct {
	// LinkDown says that the port neither sends nor gets anything, and nothing
	// is behind it. See [Member.SetLink].
	LinkDown bool

	// VLAN says which VLANs the port is in.
	VLAN VLAN

	// MACs are addresses that are behind this port, as configured: they do not
	// age, a frame from one of them at another port is dropped, and no other
	// port in the same VLAN can have them.
	MACs []MAC

	// Spoofing lets a port with MACs send from other addresses as well, which
	// are learned. A port with MACs and without Spoofing is closed: what it
	// sends from other addresses is dropped, nothing is learned, and it gets no
	// frames to unknown addresses. A port without MACs is open in any case.
	Spoofing bool

	// MaxMACs limits how many addresses can be learned behind the port at once,
	// in each VLAN. Zero stands for half of what the switch can hold.
	MaxMACs int

	// Uplink marks the way to another network. A frame from there whose source
	// is one of another port's MACs is dropped with a reason of its own: there
	// is a loop, or somebody else has the address.
	Uplink bool

	// BPDU says what becomes of the spanning tree frames the port sends.
	BPDU BPDUPolicy

	// DHCPGuard drops what only a DHCP server or relay sends.
	DHCPGuard bool

	// RouterGuard drops what only a router sends: IPv6 Router Advertisements and
	// Redirects (RFC 4861), and those of IPv4 (RFC 1256, RFC 792).
	//
	// Both guards look behind VLAN tags, LLC/SNAP and IPv6 extension headers,
	// and drop a frame whose protocol they cannot determine from Head, as RFC
	// 7113 has it.
	RouterGuard bool

	// ACL is a list of rules for frames from and to the port. The first Allow or
	// Deny that a frame matches decides; without any it passes.
	ACL []Rule

	// StormLimit is how many frames a second the port may send to group and
	// unknown addresses, with bursts of as many. Zero: no limit.
	StormLimit uint32

	// Bandwidth is how many bits a second the port may send, with bursts of a
	// tenth of a second or 128 KiB, whichever is more. What is beyond is
	// dropped, not delayed. Zero: no limit.
	Bandwidth uint64

	// Mirror makes the port one whose frames are copied, or one that gets the
	// copies.
	Mirror Mirror

	// MTU is the most bytes the port gets behind the Ethernet header and VLAN
	// tags in a frame, or in a segment of what is still to be cut. Zero: no
	// limit.
	MTU int
}

// BPDUPolicy says what becomes of the frames of the spanning tree protocol that
// a port sends: those to 01:80:C2:00:00:00 and 08 (IEEE 802.1Q-2018, tables 8-1
// and 8-2), and those to 01:00:0C:CC:CC:CD, by which some bridges run a tree for each
// VLAN.
type BPDUPolicy uint8

// What becomes of spanning tree frames.
const (
	// BPDUDefault treats them as a bridge does that takes no part in the
	// protocol: those to reserved addresses are dropped as such, and others are
	// groups like any other.
	BPDUDefault BPDUPolicy = iota

	// BPDUDrop drops them with the reason "bpdu".
	BPDUDrop

	// BPDUShutdown drops them, and takes the port's link down until
	// [Member.SetLink] brings it back: there is a bridge where none should be.
	BPDUShutdown

	// BPDUAllow passes them on to ports that have BPDUAllow too.
	BPDUAllow
	numBPDUPolicies
)

var bpduNames = [numBPDUPolicies]string{
	BPDUDefault:  "default",
	BPDUDrop:     "drop",
	BPDUShutdown: "shutdown",
	BPDUAllow:    "allow",
}

// String returns the policy's name as operators see it, like "shutdown".
func (p BPDUPolicy) String() string {
	if p < numBPDUPolicies {
		return bpduNames[p]
	}
	return fmt.Sprintf("BPDUPolicy(%d)", uint8(p))
}

// Mirror is a port's part in mirroring.
type Mirror uint8

// A port's part in mirroring.
const (
	MirrorNone Mirror = iota

	// MirrorSource is a port whose frames, to and fro, are copied to every
	// MirrorDestination: what it sends if it passes all tests, and what it is
	// sent if it may get it.
	MirrorSource

	// MirrorDestination is a port that gets the copies, once each, as they were
	// sent, whatever its VLAN. It gets no copy of what it sent itself.
	MirrorDestination
	numMirrors
)

var mirrorNames = [numMirrors]string{
	MirrorNone:        "none",
	MirrorSource:      "source",
	MirrorDestination: "destination",
}

// String returns the part's name as operators see it, like "source".
func (m Mirror) String() string {
	if m < numMirrors {
		return mirrorNames[m]
	}
	return fmt.Sprintf("Mirror(%d)", uint8(m))
}

// Errors of Join and SetOptions, found with errors.Is.
var (
	ErrOptions  = errors.New("the options do not make sense")
	ErrMACTaken = errors.New("the address belongs to another port")
	ErrVLANRole = errors.New("the VLAN has another role at another port")
)

// check says what is wrong with o by itself, if anything.
func (o *PortOptions) check() error {
	if err := o.VLAN.check(); err != nil {
		return fmt.Errorf("%w: %w", ErrOptions, err)
	}
	for i, mac := range o.MACs {
		switch {
		case mac == MAC{} || mac.IsMulticast():
			return fmt.Errorf("%w: %v is not the address of a station", ErrOptions, mac)
		case slices.Contains(o.MACs[:i], mac):
			return fmt.Errorf("%w: address %v is there twice", ErrOptions, mac)
		}
	}
	for i := range o.ACL {
		if err := o.ACL[i].check(); err != nil {
			return fmt.Errorf("%w: rule %d: %w", ErrOptions, i+1, err)
		}
	}
	switch {
	case o.MaxMACs < 0:
		return fmt.Errorf("%w: a limit of %d addresses", ErrOptions, o.MaxMACs)
	case o.BPDU >= numBPDUPolicies:
		return fmt.Errorf("%w: there is no BPDU policy %d", ErrOptions, o.BPDU)
	case o.Mirror >= numMirrors:
		return fmt.Errorf("%w: there is no part %d in mirroring", ErrOptions, o.Mirror)
	case o.MTU < 0 || o.MTU != 0 && o.MTU < 68: // RFC 791, 3.2: every link carries that much
		return fmt.Errorf("%w: an MTU of %d bytes", ErrOptions, o.MTU)
	case o.Bandwidth > maxBandwidth:
		return fmt.Errorf("%w: a bandwidth of %d bit/s", ErrOptions, o.Bandwidth)
	}
	return nil
}

// maxBandwidth is 1 Tbit/s: what is more is a mistake, and would not be exact.
const maxBandwidth = 1_000_000_000_000

// clone returns o with lists of its own.
func (o PortOptions) clone() PortOptions {
	o.MACs = slices.Clone(o.MACs)
	o.ACL = slices.Clone(o.ACL)
	return o
}

// Direction is which way a frame goes at a port, as the switch sees it.
type Direction uint8

// The directions. PortStats counts what goes In as Rx and what goes Out as Tx.
const (
	In  Direction = iota // from the port into the switch
	Out                  // from the switch to the port
)

// String returns "in" or "out".
func (d Direction) String() string {
	if d == In {
		return "in"
	}
	return "out"
}

// Action is what a [Rule] does with a frame that it matches.
type Action uint8

// What a rule does. Every rule counts what it matches.
const (
	Allow Action = iota // the frame passes, whatever later rules say
	Deny                // the frame is dropped
	Meter               // the frame is only counted, and goes on to the next rule
	numActions
)

var actionNames = [numActions]string{Allow: "allow", Deny: "deny", Meter: "meter"}

// String returns the action's name as operators see it, like "deny".
func (a Action) String() string {
	if a < numActions {
		return actionNames[a]
	}
	return fmt.Sprintf("Action(%d)", uint8(a))
}

// Rule is one rule of a port's access control list. A frame matches if it
// matches every field that is not zero. Values can be compared.
//
// What IP addresses, protocol and ports a frame has is found behind VLAN tags,
// LLC/SNAP, IPv6 extension headers and in the first fragment of a packet; later
// fragments have no ports. If a rule depends on something that Head does not
// show, though there should be, Deny matches and Allow and Meter do not.
type Rule struct {
	Action    Action
	Direction Direction

	SourceMAC      MAC
	DestinationMAC MAC

	EtherType uint16 // behind VLAN tags and LLC/SNAP

	// Source and Destination are IP addresses. IPv4 and IPv6 never match each
	// other; the zero Prefix matches anything, IP or not.
	Source      netip.Prefix
	Destination netip.Prefix

	// Protocol is the number of what an IP packet carries, after the extension
	// headers: 1 ICMP, 6 TCP, 17 UDP, 58 ICMPv6.
	Protocol uint8

	// Ports are those of TCP, UDP, UDP-Lite, DCCP or SCTP. A rule for ports
	// matches nothing else.
	SourcePorts      PortRange
	DestinationPorts PortRange
}

// PortRange is the TCP or UDP ports First to Last. The zero value is any port;
// a Last of zero stands for First.
type PortRange struct{ First, Last uint16 }

// RuleCount is what a rule has matched.
type RuleCount struct {
	Frames uint64
	Bytes  uint64 // without frame check sequence
}

func (r *Rule) check() error {
	switch {
	case r.Action >= numActions:
		return fmt.Errorf("there is no action %d", r.Action)
	case r.Direction > Out:
		return fmt.Errorf("there is no direction %d", r.Direction)
	case r.Source != netip.Prefix{} && !r.Source.IsValid(),
		r.Destination != netip.Prefix{} && !r.Destination.IsValid():
		return errors.New("an invalid IP prefix")
	case r.Source.Addr().Is4In6(), r.Destination.Addr().Is4In6():
		return errors.New("an IPv4 address written as IPv6")
	case r.Source.IsValid() && r.Destination.IsValid() && r.Source.Addr().Is4() != r.Destination.Addr().Is4():
		return fmt.Errorf("%v and %v are not of one IP version", r.Source, r.Destination)
	}
	for _, p := range [2]PortRange{r.SourcePorts, r.DestinationPorts} {
		if p.Last != 0 && p.Last < p.First {
			return fmt.Errorf("ports %d to %d are none", p.First, p.Last)
		}
	}
	return nil
}

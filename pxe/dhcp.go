package pxe

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"polder/pxe/internal/ipstack"
	"polder/vswitch"
)

// UDP ports (RFC 2131, section 4.1; PXE 2.1, section 2.2.1).
const (
	portDHCPServer = 67
	portDHCPClient = 68
	portPXE        = 4011 // boot server: where a client with an address asks what to boot
)

// DHCP options by their codes in the IANA registry "BOOTP Vendor Extensions and DHCP Options".
const (
	optSubnetMask  = 1
	optRouter      = 3
	optDNS         = 6
	optHostName    = 12
	optVendorInfo  = 43
	optLeaseTime   = 51
	optMessageType = 53
	optServerID    = 54
	optMessage     = 56
	optRenewal     = 58
	optRebinding   = 59
	optVendorClass = 60
	optClientID    = 61
	optServerName  = 66
	optBootFile    = 67
	optUserClass   = 77
	optRelayAgent  = 82
	optArch        = 93
	optMachineID   = 97
	optIPXE        = 175
)

// Fields of a BOOTP header (RFC 951, section 3): fixed offsets in bytes.
const (
	bootpOp      = 0
	bootpHType   = 1
	bootpHLen    = 2
	bootpVend    = 236 // here the fixed part ends
	bootpRequest = 1
	hwEthernet   = 1

	bootFileLen = 127 // of the header's file field, without the NUL
)

var (
	magicCookie = []byte{99, 130, 83, 99} // RFC 1497

	// skipDiscovery is option 43 with PXE_DISCOVERY_CONTROL = 8 (PXE 2.1, table 2-1): boot the file
	// name at once.
	skipDiscovery = []byte{6, 1, 8, 255}
	// noProxyDHCP is option 175 with iPXE's "no-pxedhcp" (sub-option 176) = 1.
	noProxyDHCP = []byte{176, 1, 1}
)

// dhcpQueue is how many DHCP messages wait for the one goroutine that answers them. A client repeats
// what is lost.
const dhcpQueue = 64

// dhcpRequest is a message with where it came from.
type dhcpRequest struct {
	from    ipstack.Peer
	port    uint16 // ours
	payload []byte
}

// queueDHCP is the UDP handler of both ports: it copies the message for serveDHCP.
func (s *Server) queueDHCP(d *ipstack.Datagram) {
	r := dhcpRequest{from: d.From, port: d.To.Port(), payload: bytes.Clone(d.Payload)}
	select {
	case s.dhcp <- r:
	default:
		s.warn("DHCP message dropped: too many waiting", "mac", vswitch.MAC(d.From.MAC))
	}
}

// serveDHCP answers messages one after the other until the server closes.
func (s *Server) serveDHCP() {
	defer s.wg.Done()
	for {
		select {
		case <-s.done:
			return
		case r := <-s.dhcp:
			s.handleDHCP(r, time.Now())
		}
	}
}

// handleDHCP answers one message.
func (s *Server) handleDHCP(r dhcpRequest, now time.Time) {
	mac := vswitch.MAC(r.from.MAC)
	defer func() {
		// The codec is a library's, and the bytes are a guest's.
		if p := recover(); p != nil {
			s.warn("DHCP message refused: panic", "mac", mac, "panic", p)
		}
	}()
	req, err := parseDHCP(r.payload)
	if err != nil {
		s.warn("DHCP message refused", "mac", mac, "err", err)
		return
	}
	relayed := !req.GatewayIPAddr.Equal(net.IPv4zero)
	switch {
	case !relayed && vswitch.MAC(req.ClientHWAddr) != mac:
		// Somebody speaks for somebody else, whose lease it could take or end.
		s.warn("DHCP message refused: client address is not the sender's", "mac", mac, "chaddr", req.ClientHWAddr)
		return
	case relayed && !s.cfg.Address.Contains(addrOf(req.GatewayIPAddr)):
		s.warn("DHCP message refused: no pool for the relay's subnet", "mac", mac, "giaddr", req.GatewayIPAddr)
		return
	}
	c := s.clientOf(req)
	if r.port == portPXE {
		s.answerBootServer(r, req, c)
		return
	}
	switch t := req.MessageType(); t {
	case dhcpv4.MessageTypeNone:
		s.answerBOOTP(r, req, c, now)
	case dhcpv4.MessageTypeDiscover:
		s.answerDiscover(r, req, c, now)
	case dhcpv4.MessageTypeRequest:
		s.answerRequest(r, req, c, now)
	case dhcpv4.MessageTypeDecline:
		a := addrOf(req.RequestedIPAddress())
		if s.withLeases(func(t *leaseTable) bool { return t.decline(c.MAC, a, now) }) {
			s.cfg.Log.Warn("address declined: somebody else uses it", "mac", c.MAC, "addr", a)
			c.Addr = a
			s.emit(Event{Kind: EventDecline, Client: c}, now)
		}
	case dhcpv4.MessageTypeRelease:
		a := addrOf(req.ClientIPAddr)
		if s.withLeases(func(t *leaseTable) bool { return t.release(c.MAC, a) }) {
			c.Addr = a
			s.emit(Event{Kind: EventRelease, Client: c}, now)
		}
	case dhcpv4.MessageTypeInform:
		reply := s.compose(req, dhcpv4.MessageTypeAck)
		s.addNetwork(reply)
		s.addBoot(reply, req, c)
		s.sendDHCP(r, req, reply)
	default:
		s.warn("DHCP message of an unexpected type", "mac", mac, "type", uint8(t))
	}
}

func (s *Server) withLeases(f func(*leaseTable) bool) bool {
	s.leaseMu.Lock()
	defer s.leaseMu.Unlock()
	return f(s.leases)
}

func (s *Server) answerDiscover(r dhcpRequest, req *dhcpv4.DHCPv4, c Client, now time.Time) {
	s.cancelTransfers(c.MAC, "the guest boots anew")
	s.guests.met(c, true, now)
	s.emit(Event{Kind: EventDiscover, Client: c}, now)
	wish := addrOf(req.RequestedIPAddress())
	ok := s.withLeases(func(t *leaseTable) (ok bool) {
		c.Addr, ok = t.offer(c, wish, now)
		return ok
	})
	if !ok {
		s.warn("no address is left in the pool", "mac", c.MAC)
		s.emit(Event{Kind: EventExhaust, Client: c}, now)
		return
	}
	reply := s.compose(req, dhcpv4.MessageTypeOffer)
	file := s.addLease(reply, req, c)
	s.guests.met(c, false, now)
	s.sendDHCP(r, req, reply)
	s.emit(Event{Kind: EventOffer, Client: c, Detail: file}, now)
}

// answerRequest tells the four uses of DHCPREQUEST apart as RFC 2131, section 4.3.2, does.
func (s *Server) answerRequest(r dhcpRequest, req *dhcpv4.DHCPv4, c Client, now time.Time) {
	if id := req.ServerIdentifier(); id != nil && addrOf(id) != c.Server {
		// SELECTING, but another server.
		s.withLeases(func(t *leaseTable) bool { t.forget(c.MAC); return true })
		return
	}
	want := addrOf(req.RequestedIPAddress()) // SELECTING, INIT-REBOOT
	if !want.IsValid() {
		want = addrOf(req.ClientIPAddr) // RENEWING, REBINDING
	}
	s.guests.met(c, false, now)
	if !s.withLeases(func(t *leaseTable) bool { return t.bind(c, want, leaseBound, s.cfg.Lease, now) }) {
		// The service is the only server of its network, so silence would help nobody.
		reply := s.compose(req, dhcpv4.MessageTypeNak)
		reply.ClientIPAddr = net.IPv4zero
		reply.Options[optMessage] = []byte("address not available")
		s.sendDHCP(r, req, reply)
		c.Addr = want
		s.emit(Event{Kind: EventNak, Client: c}, now)
		return
	}
	c.Addr = want
	reply := s.compose(req, dhcpv4.MessageTypeAck)
	file := s.addLease(reply, req, c)
	s.guests.settle(c)
	s.sendDHCP(r, req, reply)
	s.emit(Event{Kind: EventAck, Client: c, Detail: file}, now)
}

// answerBOOTP serves a client older than DHCP (RFC 951, RFC 1497): the reply has none of DHCP's own
// options and fits 300 bytes.
func (s *Server) answerBOOTP(r dhcpRequest, req *dhcpv4.DHCPv4, c Client, now time.Time) {
	s.guests.met(c, true, now)
	ok := s.withLeases(func(t *leaseTable) (ok bool) {
		if c.Addr, ok = t.offer(c, addrOf(req.ClientIPAddr), now); ok {
			ok = t.bind(c, c.Addr, leaseBOOTP, s.cfg.Lease, now)
		}
		return ok
	})
	if !ok {
		s.warn("no address is left in the pool", "mac", c.MAC)
		s.emit(Event{Kind: EventExhaust, Client: c}, now)
		return
	}
	reply := s.compose(req, dhcpv4.MessageTypeNone)
	clear(reply.Options)
	s.addNetwork(reply)
	if !req.ClientIPAddr.Equal(net.IPv4zero) {
		c.Addr = addrOf(req.ClientIPAddr) // it knows its address and asks only what to boot
	}
	reply.YourIPAddr = c.Addr.AsSlice()
	file := s.policy.Decide(c).File
	s.setBootFile(reply, file)
	s.guests.settle(c)
	s.sendDHCP(r, req, reply)
	s.emit(Event{Kind: EventAck, Client: c, Detail: file}, now)
}

// answerBootServer serves port 4011, where a PXE client that has its address, from us or from another
// server, asks for the boot file.
func (s *Server) answerBootServer(r dhcpRequest, req *dhcpv4.DHCPv4, c Client) {
	t := req.MessageType()
	if r.from.Addr.Addr().IsUnspecified() || !c.PXE() && !c.HTTP() || t != dhcpv4.MessageTypeRequest && t != dhcpv4.MessageTypeInform {
		s.warn("message refused on the boot server port", "mac", c.MAC, "type", uint8(t))
		return
	}
	reply := s.compose(req, dhcpv4.MessageTypeAck)
	s.addBoot(reply, req, c)
	s.sendDHCP(r, req, reply)
}

// parseDHCP decodes a request from an Ethernet client. It mends what old clients leave out and the
// library insists on: RFC 951's messages have no magic cookie, and some ROMs no END option.
func parseDHCP(b []byte) (*dhcpv4.DHCPv4, error) {
	if len(b) < bootpVend {
		return nil, fmt.Errorf("%d bytes, want at least %d", len(b), bootpVend)
	}
	if b[bootpOp] != bootpRequest || b[bootpHType] != hwEthernet || b[bootpHLen] != 6 {
		return nil, fmt.Errorf("op %d, hardware type %d, address length %d: not a request from Ethernet",
			b[bootpOp], b[bootpHType], b[bootpHLen])
	}
	b = slices.Clip(b)
	if bytes.HasPrefix(b[bootpVend:], magicCookie) {
		b = append(b, 255)
	} else {
		b = append(b[:bootpVend:bootpVend], magicCookie...)
		b = append(b, 255)
	}
	req, err := dhcpv4.FromBytes(b)
	if err != nil {
		return nil, err
	}
	if b[6] == 1 || vswitch.MAC(req.ClientHWAddr).IsMulticast() || vswitch.MAC(req.ClientHWAddr) == (vswitch.MAC{}) {
		return nil, errors.New("client address is no host's")
	}
	return req, nil
}

// clientOf reads what a message says of its sender.
func (s *Server) clientOf(req *dhcpv4.DHCPv4) Client {
	c := Client{
		MAC:         vswitch.MAC(req.ClientHWAddr),
		Arch:        ArchUnknown,
		VendorClass: printable(req.ClassIdentifier(), 64),
		Hostname:    printable(req.HostName(), 64),
		Server:      s.cfg.Address.Addr(),
	}
	if a := req.Options[optArch]; len(a) >= 2 {
		c.Arch = int(binary.BigEndian.Uint16(a))
	}
	if u := req.Options[optMachineID]; len(u) == 17 && u[0] == 0 { // type 0: UUID (RFC 4578, section 2.3)
		c.UUID = UUID(u[1:])
	}
	if req.Options.Has(dhcpv4.GenericOptionCode(optUserClass)) {
		classes := req.UserClass() // raw text as iPXE sends it, or RFC 3004's list
		if i := slices.Index(classes, "iPXE"); i > 0 {
			classes = classes[i:]
		}
		if len(classes) > 0 {
			c.UserClass = printable(classes[0], 64)
		}
	}
	if r, ok := reservationFor(s.cfg.Reservations, c); ok && r.Name != "" {
		c.Hostname = r.Name
	}
	return c
}

// compose begins a reply: what every one has in common.
func (s *Server) compose(req *dhcpv4.DHCPv4, t dhcpv4.MessageType) *dhcpv4.DHCPv4 {
	reply := &dhcpv4.DHCPv4{
		OpCode:        dhcpv4.OpcodeBootReply,
		HWType:        req.HWType,
		TransactionID: req.TransactionID,
		Flags:         req.Flags,
		ClientIPAddr:  req.ClientIPAddr,
		YourIPAddr:    net.IPv4zero,
		ServerIPAddr:  net.IPv4zero,
		GatewayIPAddr: req.GatewayIPAddr,
		ClientHWAddr:  req.ClientHWAddr,
		Options: dhcpv4.Options{
			optMessageType: {byte(t)},
			optServerID:    s.cfg.Address.Addr().AsSlice(),
		},
	}
	// Sent back as they came: client identifier (RFC 6842), machine identifier (PXE 2.1, table 2-1) and
	// relay agent information (RFC 3046, section 2.2).
	for _, code := range []uint8{optClientID, optMachineID, optRelayAgent} {
		if v := req.Options[code]; v != nil {
			reply.Options[code] = v
		}
	}
	return reply
}

// addNetwork adds what a host needs to know of its network.
func (s *Server) addNetwork(reply *dhcpv4.DHCPv4) {
	reply.Options[optSubnetMask] = net.CIDRMask(s.cfg.Address.Bits(), 32)
	if s.cfg.Router.IsValid() { // the service itself routes nothing
		reply.Options[optRouter] = s.cfg.Router.AsSlice()
	}
	if len(s.cfg.DNS) > 0 {
		var all []byte
		for _, a := range s.cfg.DNS {
			all = append(all, a.AsSlice()...)
		}
		reply.Options[optDNS] = all
	}
}

// addLease completes an offer or acknowledgement of c.Addr, and returns the boot file.
func (s *Server) addLease(reply, req *dhcpv4.DHCPv4, c Client) (file string) {
	reply.YourIPAddr = c.Addr.AsSlice()
	seconds := func(d time.Duration) []byte { return binary.BigEndian.AppendUint32(nil, uint32(d/time.Second)) }
	reply.Options[optLeaseTime] = seconds(s.cfg.Lease)
	reply.Options[optRenewal] = seconds(s.cfg.Lease / 2) // RFC 2131, section 4.4.5
	reply.Options[optRebinding] = seconds(s.cfg.Lease / 8 * 7)
	if r, ok := reservationFor(s.cfg.Reservations, c); ok && r.Name != "" {
		reply.Options[optHostName] = []byte(r.Name)
	}
	s.addNetwork(reply)
	return s.addBoot(reply, req, c)
}

// addBoot adds what the client boots, as the policy decides, and returns the file.
func (s *Server) addBoot(reply, req *dhcpv4.DHCPv4, c Client) (file string) {
	d := s.policy.Decide(c)
	if d.VendorClass != "" {
		reply.Options[optVendorClass] = []byte(d.VendorClass)
	}
	if d.SkipDiscovery {
		reply.Options[optVendorInfo] = skipDiscovery
	}
	if d.NoProxyDHCP {
		reply.Options[optIPXE] = noProxyDHCP
	}
	s.setBootFile(reply, d.File)
	if d.File != "" {
		reply.Options[optServerName] = []byte(s.cfg.Address.Addr().String())
		reply.Options[optBootFile] = []byte(d.File)
	}
	return d.File
}

// setBootFile fills the header's fields. ROMs read them, whatever the options say; a name that is too
// long for the header is in option 67 alone.
func (s *Server) setBootFile(reply *dhcpv4.DHCPv4, file string) {
	reply.ServerIPAddr = s.cfg.Address.Addr().AsSlice()
	if file == "" {
		return
	}
	reply.ServerHostName = s.cfg.Address.Addr().String()
	if len(file) <= bootFileLen {
		reply.BootFileName = file
	}
}

// sendDHCP sends a reply where RFC 2131, section 4.1, says. A client that has no address yet and does
// not ask for broadcasts is reached at yiaddr and its MAC, with no ARP.
func (s *Server) sendDHCP(r dhcpRequest, req, reply *dhcpv4.DHCPv4) {
	payload := reply.ToBytes()
	if len(payload) > ipstack.MaxPayload {
		s.warn("DHCP reply does not fit a packet", "mac", vswitch.MAC(r.from.MAC), "bytes", len(payload))
		return
	}
	to := ipstack.Peer{MAC: r.from.MAC}
	broadcast := netip.AddrFrom4([4]byte{255, 255, 255, 255})
	relay, ciaddr, yiaddr := addrOf(req.GatewayIPAddr), addrOf(req.ClientIPAddr), addrOf(reply.YourIPAddr)
	nak := reply.MessageType() == dhcpv4.MessageTypeNak
	switch {
	case r.port == portPXE:
		to.Addr = r.from.Addr
	case relay.IsValid():
		to.Addr = netip.AddrPortFrom(relay, portDHCPServer)
		if nak {
			// The relay's clients may not be able to use their addresses: let it broadcast.
			reply.SetBroadcast()
			payload = reply.ToBytes()
		}
	case ciaddr.IsValid() && !nak:
		to.Addr = netip.AddrPortFrom(ciaddr, portDHCPClient)
	case nak || req.IsBroadcast() || !yiaddr.IsValid():
		to.Addr = netip.AddrPortFrom(broadcast, portDHCPClient)
		to.MAC = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	default:
		to.Addr = netip.AddrPortFrom(yiaddr, portDHCPClient)
	}
	packet := append(make([]byte, ipstack.Headroom, ipstack.Headroom+len(payload)), payload...)
	s.stack.Send(r.port, &to, [][]byte{packet})
}

// addrOf converts an address of the library, which stands for "none" by nil or zeros: invalid then.
func addrOf(ip net.IP) netip.Addr {
	a, ok := netip.AddrFromSlice(ip.To4())
	if !ok || a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}

package ipstack

import (
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// link is the Ethernet interface under netstack. What netstack sends leaves through Stack.transmit at
// once, on the goroutine that sends it: there is no queue here and no goroutine.
type link struct {
	s *Stack

	mu         sync.RWMutex // guards dispatcher, which netstack attaches and detaches
	dispatcher stack.NetworkDispatcher

	outMu  sync.Mutex // guards the scratch of WritePackets
	frames [][]byte   // at most linkBatch
	bufs   [linkBatch][MaxFrame]byte
}

// linkBatch is how many frames leave in one call of Output.
const linkBatch = 32

var _ stack.LinkEndpoint = (*link)(nil)

func newLink(s *Stack) *link {
	return &link{s: s, frames: make([][]byte, 0, linkBatch)}
}

// deliver gives a received packet to netstack, unless it is not attached (any more).
func (l *link) deliver(protocol tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	l.mu.RLock()
	d := l.dispatcher
	l.mu.RUnlock()
	if d != nil {
		d.DeliverNetworkPacket(protocol, pkt)
	}
}

// WritePackets implements [stack.LinkWriter]: it flattens the packets and sends them.
func (l *link) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	l.outMu.Lock()
	defer l.outMu.Unlock()
	for _, pkt := range pkts.AsSlice() {
		if pkt.Size() > MaxFrame {
			continue // netstack honours the MTU; a frame that does not fit is lost, as on a wire
		}
		buf := l.bufs[len(l.frames)][:0]
		for _, part := range pkt.AsSlices() {
			buf = append(buf, part...)
		}
		l.frames = append(l.frames, buf)
		if len(l.frames) == linkBatch {
			l.flush()
		}
	}
	if len(l.frames) > 0 {
		l.flush()
	}
	return pkts.Len(), nil
}

// flush is called with outMu held.
func (l *link) flush() {
	l.s.transmit(l.frames)
	l.frames = l.frames[:0]
}

// AddHeader implements [stack.NetworkLinkEndpoint].
func (l *link) AddHeader(pkt *stack.PacketBuffer) {
	eth := header.Ethernet(pkt.LinkHeader().Push(header.EthernetMinimumSize))
	eth.Encode(&header.EthernetFields{
		SrcAddr: l.LinkAddress(),
		DstAddr: pkt.EgressRoute.RemoteLinkAddress,
		Type:    pkt.NetworkProtocolNumber,
	})
}

// ParseHeader implements [stack.NetworkLinkEndpoint].
func (*link) ParseHeader(pkt *stack.PacketBuffer) bool {
	_, ok := pkt.LinkHeader().Consume(header.EthernetMinimumSize)
	return ok
}

// Attach implements [stack.NetworkLinkEndpoint].
func (l *link) Attach(d stack.NetworkDispatcher) {
	l.mu.Lock()
	l.dispatcher = d
	l.mu.Unlock()
}

// IsAttached implements [stack.NetworkLinkEndpoint].
func (l *link) IsAttached() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.dispatcher != nil
}

// LinkAddress implements [stack.NetworkLinkEndpoint].
func (l *link) LinkAddress() tcpip.LinkAddress {
	return tcpip.LinkAddress(l.s.cfg.MAC[:])
}

// Capabilities implements [stack.NetworkLinkEndpoint]: neighbours are found by ARP.
func (*link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityResolutionRequired
}

// ARPHardwareType implements [stack.NetworkLinkEndpoint].
func (*link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }

// MTU implements [stack.NetworkLinkEndpoint].
func (*link) MTU() uint32 { return MTU }

// MaxHeaderLength implements [stack.NetworkLinkEndpoint].
func (*link) MaxHeaderLength() uint16 { return etherLen }

// The rest of [stack.NetworkLinkEndpoint] has nothing to do here: address and MTU are fixed, and
// there is nothing to wait for or to close.

func (*link) SetMTU(uint32)                    {}
func (*link) SetLinkAddress(tcpip.LinkAddress) {}
func (*link) Wait()                            {}
func (*link) Close()                           {}
func (*link) SetOnCloseAction(func())          {}

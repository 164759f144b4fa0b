package pxe

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"polder/pxe/internal/ipstack"
	"polder/vswitch"
)

// Config says what a [Server] is and serves. Address, the pool and MAC must be set; every other field
// may be zero. New copies it; what its slices and maps hold must not change afterwards.
type Config struct {
	Address   netip.Prefix // the service's own IPv4 address, with the length of its subnet's prefix
	MAC       vswitch.MAC
	PoolFirst netip.Addr // addresses for guests: PoolFirst to PoolLast, at most 65,536
	PoolLast  netip.Addr

	Lease        time.Duration // of addresses; 0: one hour
	Reservations []Reservation
	Router       netip.Addr   // told to guests; invalid: none. The service itself routes nothing.
	DNS          []netip.Addr // told to guests

	// Files are the files guests can load. To be safe against links that lead out of a directory, use
	// the file system of an os.Root. Nil: only generated files.
	Files fs.FS
	Boot  []BootRule
	// DefaultNBP is a network boot program that a PXE ROM on a BIOS loads when there is nothing else
	// for it. Nil: such a guest is told no file.
	DefaultNBP []byte

	MaxTransfers int           // TFTP transfers at a time; 0: 64
	Timeout      time.Duration // before a TFTP packet is sent again, in steps of 100 ms; 0: one second
	Retries      int           // of the same TFTP packet before the transfer is given up; 0: 6

	// NoRouterAdvertisement leaves IPv6 Router Solicitations without an answer. Boot firmware with IPv6
	// then waits up to 16 s for one before it loads anything.
	NoRouterAdvertisement bool

	Log *slog.Logger // nil: no log

	// Events is called with each step of a guest's boot, from the goroutines that do the work, several
	// at once. It must return at once: it must not wait, and must not call the Server's Close.
	Events func(Event)
}

func (c Config) withDefaults() (Config, error) {
	if !c.Address.IsValid() || !c.Address.Addr().Is4() {
		return c, fmt.Errorf("pxe: address %v is not an IPv4 address with prefix length", c.Address)
	}
	if c.Lease == 0 {
		c.Lease = time.Hour
	}
	if c.Lease < time.Minute || c.Lease/time.Second > math.MaxUint32 {
		return c, fmt.Errorf("pxe: lease time %v is out of range", c.Lease)
	}
	for _, a := range append([]netip.Addr{c.Router}, c.DNS...) {
		if a.IsValid() && !a.Is4() {
			return c, fmt.Errorf("pxe: %v is not an IPv4 address", a)
		}
	}
	if len(c.DNS) > 63 {
		return c, fmt.Errorf("pxe: %d DNS servers do not fit a DHCP option", len(c.DNS))
	}
	if c.MaxTransfers == 0 {
		c.MaxTransfers = 64
	}
	if c.Timeout == 0 {
		c.Timeout = time.Second
	}
	if c.Retries == 0 {
		c.Retries = 6
	}
	if c.MaxTransfers < 0 || c.Timeout < tickInterval || c.Retries < 0 {
		return c, errors.New("pxe: TFTP limits out of range")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// Server is the boot service on one port of a switch. It implements [vswitch.Port].
//
// The order of its life is New, Join to a switch, Start, Close, Leave.
type Server struct {
	cfg    Config
	stack  *ipstack.Stack
	policy *Policy
	files  *library
	guests *guests
	inbox  *inbox
	outbox outbox

	leaseMu sync.Mutex
	leases  *leaseTable

	dhcp chan dhcpRequest

	tftp         tftpd
	tftpRunning  atomic.Int64
	nextTransfer atomic.Uint64 // of TFTP and HTTP
	// libraryServesOctet lets the library send all files without a window; see doc.go.
	libraryServesOctet bool

	ticks      atomic.Int64 // the coarse clock: tickIntervals since Start
	warnings   atomic.Int64 // in the current second
	suppressed atomic.Int64

	life    sync.Mutex // guards the next three
	started bool
	closed  bool
	web     *http.Server
	closing bool          // guarded by tftp.mu: no new transfers
	done    chan struct{} // closed by Close
	wg      sync.WaitGroup
}

var _ vswitch.Port = (*Server)(nil)

// New returns a service that does not answer before [Server.Start].
func New(cfg Config) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Server{
		cfg:    cfg,
		guests: newGuests(),
		inbox:  &inbox{own: cfg.MAC, wake: make(chan struct{}, 1)},
		dhcp:   make(chan dhcpRequest, dhcpQueue),
		tftp:   tftpd{transfers: make(map[ipstack.Peer]*transfer)},
		done:   make(chan struct{}),
	}
	if s.leases, err = newLeaseTable(cfg.Address, cfg.PoolFirst, cfg.PoolLast, cfg.Reservations); err != nil {
		return nil, err
	}
	if s.files, err = newLibrary(&cfg); err != nil {
		return nil, err
	}
	s.policy = &Policy{Server: cfg.Address.Addr(), Rules: cfg.Boot, HasLoader: cfg.DefaultNBP != nil}
	if cfg.Files != nil {
		s.policy.Exists = s.files.exists
	}
	s.stack, err = ipstack.New(ipstack.Config{
		MAC: cfg.MAC, Addr: cfg.Address,
		Output:              s.outbox.send,
		RouterAdvertisement: !cfg.NoRouterAdvertisement,
	})
	if err != nil {
		return nil, fmt.Errorf("pxe: %w", err)
	}
	return s, nil
}

// Deliver implements [vswitch.Port]: it copies frames into a queue of fixed size.
func (s *Server) Deliver(frames []*vswitch.Frame) int { return s.inbox.deliver(frames) }

// Start makes the service answer, sending through in, which is the service's own until Close returns.
func (s *Server) Start(in *vswitch.Ingress) error {
	s.life.Lock()
	defer s.life.Unlock()
	if s.started || s.closed {
		return errors.New("pxe: the service was started or closed before")
	}
	s.outbox.in = in
	for port, h := range map[uint16]ipstack.Handler{
		portDHCPServer: s.queueDHCP,
		portPXE:        s.queueDHCP,
		portTFTP:       s.receiveTFTP,
	} {
		if _, _, err := s.stack.HandleUDP(port, h); err != nil {
			return fmt.Errorf("pxe: %w", err)
		}
	}
	l, err := s.stack.ListenTCP(portHTTP)
	if err != nil {
		return fmt.Errorf("pxe: %w", err)
	}
	s.started = true
	s.web = s.newHTTP()
	s.wg.Add(4)
	go s.serveFrames()
	go s.serveDHCP()
	go s.serveHTTP(l)
	go s.keepTime()
	return nil
}

// Close ends all transfers and goroutines; afterwards nothing is sent and no event comes. Close waits
// for a read of Config.Files that is under way. It may be called more than once, and without Start.
func (s *Server) Close() error {
	s.life.Lock()
	defer s.life.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	close(s.done)
	s.inbox.close()
	s.tftp.mu.Lock()
	s.closing = true
	for _, t := range s.tftp.transfers {
		t.sender.cancel("the service is closing")
	}
	s.tftp.mu.Unlock()
	if s.web != nil {
		s.web.Close()
	}
	s.wg.Wait()
	s.stack.Close()
	return nil
}

// Leases returns the addresses that are in use, in their order.
func (s *Server) Leases() []Lease {
	s.leaseMu.Lock()
	defer s.leaseMu.Unlock()
	return s.leases.leases(time.Now())
}

func (s *Server) serveFrames() {
	defer s.wg.Done()
	s.inbox.receive(s.stack.Input)
}

func (s *Server) serveHTTP(l net.Listener) {
	defer s.wg.Done()
	err := s.web.Serve(limitedListener{Listener: l, slots: make(chan struct{}, maxHTTPConns)})
	if !errors.Is(err, http.ErrServerClosed) {
		s.cfg.Log.Error("HTTP service ended", "err", err)
	}
}

// keepTime ticks for all that waits.
func (s *Server) keepTime() {
	defer s.wg.Done()
	ticker := time.NewTicker(tickInterval)
	defer ticker.Stop()
	var scratch []*transfer
	for {
		select {
		case <-s.done:
			return
		case <-ticker.C:
		}
		if n := s.ticks.Add(1); n%int64(time.Second/tickInterval) == 0 {
			s.warnings.Store(0)
			if n := s.suppressed.Swap(0); n > 0 {
				s.cfg.Log.Warn("warnings suppressed", "count", n)
			}
		}
		scratch = s.tickTFTP(scratch)
	}
}

// maxWarnings is how many warnings a second guests can cause.
const maxWarnings = 10

// warn logs what a guest did wrong, at a limited rate.
func (s *Server) warn(msg string, args ...any) {
	if s.warnings.Add(1) > maxWarnings {
		s.suppressed.Add(1)
		return
	}
	s.cfg.Log.Warn(msg, args...)
}

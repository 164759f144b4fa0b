// Package api holds the plain structs of the control protocol: what the daemon answers and
// what its clients ask, as JSON over HTTP on a unix socket. The protocol's description for
// other clients is openapi.yaml.
package api

import (
	_ "embed" // for the description
	"fmt"
	"net/http"
	"net/netip"
	"time"

	"polder/cmd/internal/config"
)

// Description is the protocol's, in OpenAPI 3.
//
//go:embed openapi.yaml
var Description []byte

// Paths of the control protocol.
const (
	PathStatus      = "/v1/status"             // GET: Status
	PathConfig      = "/v1/config"             // GET, PUT: a configuration file's text; PUT answers []Change
	PathSwitches    = "/v1/switches"           // GET: []Switch; POST: a switch, with the configuration file's keys
	PathSwitch      = "/v1/switches/{switch}"  // GET, DELETE
	PathFDB         = PathSwitch + "/fdb"      // GET: []MAC; POST MACRequest; DELETE ?port= &mac= &vlan=: Flushed
	PathExternal    = PathSwitch + "/external" // GET: External; POST ExternalRequest: External
	PathAdapters    = "/v1/adapters"           // GET: []Port; POST AdapterRequest: Adapter
	PathAdapter     = "/v1/adapters/{adapter}" // GET, PATCH AdapterChange, DELETE
	PathTemporary   = "/v1/temporary-adapters" // POST AdapterRequest: a stream of Event, which owns the adapter
	PathLeases      = "/v1/leases"             // GET: []Lease
	PathBoots       = "/v1/boots"              // GET: []BootEvent, the last one of each client
	PathEvents      = "/v1/events"             // GET: a stream of Event
	PathCapture     = "/v1/capture"            // GET ?switch= &port= &snaplen= &drops=: pcapng
	PathDescription = "/v1/openapi.yaml"       // GET: Description
	PathMetrics     = "/metrics"               // GET: Prometheus' text
	PathHealth      = "/healthz"               // GET: 200 while the daemon works
)

// Status is what a daemon is and has.
type Status struct {
	Version    string        `json:"version"`
	PID        int           `json:"pid"`
	Uptime     time.Duration `json:"uptime_ns"`
	Goroutines int           `json:"goroutines"`
	Switches   []Switch      `json:"switches"`
	Adapters   []Port        `json:"disconnected"` // adapters on no switch
}

// Switch is one virtual network and the ports on it, by name.
type Switch struct {
	Name  string `json:"name"`
	Type  string `json:"type"`
	Ports []Port `json:"ports"`
	FDB   []MAC  `json:"fdb"`
}

// MAC is an address that a switch knows the way to.
type MAC struct {
	MAC    string        `json:"mac"`
	VLAN   int           `json:"vlan,omitempty"` // 0: of a switch without VLANs
	Port   string        `json:"port"`
	Age    time.Duration `json:"age_ns"`
	Static bool          `json:"static,omitempty"` // by configuration; not learned
}

// MACRequest adds a static address.
type MACRequest struct {
	MAC  string `json:"mac"`
	VLAN int    `json:"vlan,omitempty"`
	Port string `json:"port"`
}

// Flushed is how many addresses a switch has forgotten.
type Flushed struct {
	Count int `json:"count"`
}

// Kinds of ports besides an adapter's own, config.KindLegacy and config.KindSynthetic.
const (
	KindPXE        = "pxe"
	KindManagement = "management" // the host's
	KindUplink     = "uplink"
)

// Port is one port's state. Rx is what its owner sent into the switch, Tx what it was given.
type Port struct {
	Name     string            `json:"name"`
	Switch   string            `json:"switch,omitempty"` // "": disconnected
	VM       string            `json:"vm,omitempty"`
	Kind     string            `json:"kind"`
	MAC      string            `json:"mac,omitempty"`
	Socket   string            `json:"socket,omitempty"`
	Attached bool              `json:"attached"`
	Link     string            `json:"link"` // config.LinkUp or config.LinkDown, as it is now
	RxFrames uint64            `json:"rx_frames"`
	RxBytes  uint64            `json:"rx_bytes"`
	TxFrames uint64            `json:"tx_frames"`
	TxBytes  uint64            `json:"tx_bytes"`
	Drops    map[string]uint64 `json:"drops,omitempty"`  // frames, by reason
	Policy   *config.Policy    `json:"policy,omitempty"` // of an adapter, with the configuration file's keys
	ACL      []uint64          `json:"acl,omitempty"`    // frames that each of the policy's rules has matched

	GSOSegmented       uint64 `json:"gso_segmented"`       // frames made of large ones for this port
	ChecksumsCompleted uint64 `json:"checksums_completed"` // for this port
	MACMoves           uint64 `json:"mac_moves"`           // of addresses to this port
}

// AdapterRequest asks for an adapter.
type AdapterRequest struct {
	Switch string `json:"switch"`
	Name   string `json:"name"`
	VM     string `json:"vm,omitempty"`   // "": Name
	Kind   string `json:"kind,omitempty"` // "legacy" or "synthetic"; "": legacy
	MAC    string `json:"mac,omitempty"`  // "": made by the daemon

	Socket string `json:"socket,omitempty"` // path; "": in the daemon's directory of sockets

	// Of a legacy adapter.
	ROM   []byte `json:"rom,omitempty"` // boot ROM; empty: the adapter's own
	NoROM bool   `json:"no_rom,omitempty"`

	// Of a synthetic adapter.
	Queues    int  `json:"queues,omitempty"`     // pairs; 0: one
	NoPacked  bool `json:"no_packed,omitempty"`  // offers split rings only
	NoOffload bool `json:"no_offload,omitempty"` // offers neither checksums nor segmentation
	Client    bool `json:"client,omitempty"`     // the hypervisor listens on the socket, and the daemon connects

	config.Policy // the configuration file's keys
}

// AdapterChange changes a live adapter. What is nil or empty stays.
type AdapterChange struct {
	Switch *string `json:"switch,omitempty"`  // connects to another; "": disconnects
	NoVLAN bool    `json:"no_vlan,omitempty"` // takes the adapter out of its VLAN
	NoACL  bool    `json:"no_acl,omitempty"`  // takes away all rules

	config.Policy
}

// Adapter is where a hypervisor attaches.
type Adapter struct {
	Name   string `json:"name"`
	Switch string `json:"switch"`
	Kind   string `json:"kind"`
	MAC    string `json:"mac"`
	MTU    int    `json:"mtu"` // of its switch, bytes
	Socket string `json:"socket"`
}

// Change is one difference between the running configuration and another.
type Change struct {
	Action string `json:"action"` // ChangeAdd, ChangeRemove, ChangeSet (live) or ChangeReplace (removed and added again)
	Kind   string `json:"kind"`   // "switch", "pxe", "adapter"
	Name   string `json:"name"`
	Detail string `json:"detail,omitempty"` // what is different
}

// What a Change does.
const (
	ChangeAdd     = "add"
	ChangeRemove  = "remove"
	ChangeSet     = "set"
	ChangeReplace = "replace"
)

// Lease is an address that a boot service has given to a client.
type Lease struct {
	Switch   string     `json:"switch"`
	Address  netip.Addr `json:"address"`
	MAC      string     `json:"mac"`
	UUID     string     `json:"uuid,omitempty"`
	Hostname string     `json:"hostname,omitempty"`
	Expires  time.Time  `json:"expires,omitzero"` // zero: never
	Reserved bool       `json:"reserved,omitempty"`
}

// Event is something that happened. Kind says which of the other fields are set.
type Event struct {
	Time    time.Time  `json:"time"`
	Kind    string     `json:"kind"`
	Switch  string     `json:"switch,omitempty"`
	Port    string     `json:"port,omitempty"`
	Detail  string     `json:"detail,omitempty"`
	Adapter *Adapter   `json:"adapter,omitempty"`
	Boot    *BootEvent `json:"boot,omitempty"`
}

// Kinds of events, besides those of the switch itself, which have the names that vswitch gives them.
const (
	EventAdapter  = "adapter"  // the first of a temporary adapter's stream
	EventBoot     = "boot"     // a step of a guest's boot
	EventAttached = "attached" // a hypervisor, to an adapter
	EventDetached = "detached"
	EventAdded    = "added" // a switch, or an adapter
	EventRemoved  = "removed"
	EventChanged  = "changed"
	EventMissed   = "missed" // the reader was too slow; Detail says for how many
)

// BootEvent is one step of a client's boot.
type BootEvent struct {
	Time     time.Time     `json:"time"`
	Switch   string        `json:"switch"`
	MAC      string        `json:"mac"`
	IP       string        `json:"ip,omitempty"`
	Kind     string        `json:"kind"`
	Elapsed  time.Duration `json:"elapsed_ns"`         // since the client's first DISCOVER
	Name     string        `json:"name,omitempty"`     // of a file
	Protocol string        `json:"protocol,omitempty"` // "tftp", "http"
	Size     int64         `json:"size,omitempty"`     // of the file, bytes; -1: not known
	Bytes    int64         `json:"bytes,omitempty"`    // sent so far
	Took     time.Duration `json:"took_ns,omitempty"`  // of the file, since its request
	Detail   string        `json:"detail,omitempty"`
}

// External is an external switch's hold on the host's network.
type External struct {
	Switch string    `json:"switch"`
	State  string    `json:"state"`          // ExternalCommitted, ExternalUnconfirmed or ExternalRolledBack
	Until  time.Time `json:"until,omitzero"` // of an unconfirmed one: when it is rolled back
	NIC    string    `json:"nic"`            // the host's network adapter, or the bridge that the switch has joined
	Driver string    `json:"driver"`
	Device string    `json:"device,omitempty"` // the host's own adapter
	MTU    int       `json:"mtu,omitempty"`
	Notes  []string  `json:"notes,omitempty"` // what the operator should know
}

// States of an External.
const (
	ExternalCommitted   = "committed"
	ExternalUnconfirmed = "unconfirmed" // rolled back unless it is committed again in time
	ExternalRolledBack  = "rolled-back"
)

// ExternalRequest changes an External.
type ExternalRequest struct {
	Action  string        `json:"action"`               // ExternalCommit or ExternalRollback
	Timeout time.Duration `json:"timeout_ns,omitempty"` // of a commit: to commit again within; 0: it is kept
}

// What an ExternalRequest asks for.
const (
	ExternalCommit   = "commit"
	ExternalRollback = "rollback"
)

// CaptureOptions says which frames are captured.
type CaptureOptions struct {
	Switch    string   // "": all
	Ports     []string // none: all of the switch
	Snaplen   int      // bytes of each frame; 0: all
	DropsOnly bool     // only frames that the switch drops
}

// Problem is the body of an answer that is no success (RFC 9457). It is an error, too.
type Problem struct {
	Type   string `json:"type"` // "about:blank": the status says it all
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	Field  string `json:"field,omitempty"` // of the request
}

// Error implements error.
func (p *Problem) Error() string { return p.Detail }

// Problemf returns a problem with an HTTP status.
func Problemf(status int, format string, args ...any) *Problem {
	return &Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: fmt.Sprintf(format, args...)}
}

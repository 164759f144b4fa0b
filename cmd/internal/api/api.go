// Package api holds the plain structs of the control protocol: what the daemon answers and
// what its clients ask, as JSON over HTTP on a unix socket.
package api

import "time"

// Paths of the control protocol.
const (
	PathStatus   = "/v1/status"   // GET: Status
	PathAdapters = "/v1/adapters" // POST AdapterRequest: a stream of Message, which owns the adapter
	PathEvents   = "/v1/events"   // GET: a stream of Message
)

// Status is what a daemon is and has.
type Status struct {
	Version    string        `json:"version"`
	PID        int           `json:"pid"`
	Uptime     time.Duration `json:"uptime_ns"`
	Goroutines int           `json:"goroutines"`
	Switches   []Switch      `json:"switches"`
}

// Switch is one virtual network and the ports on it, by name.
type Switch struct {
	Name  string `json:"name"`
	Type  string `json:"type"`
	Ports []Port `json:"ports"`
	FDB   []MAC  `json:"fdb"`
}

// MAC is an address that a switch has learned.
type MAC struct {
	MAC  string        `json:"mac"`
	Port string        `json:"port"`
	Age  time.Duration `json:"age_ns"`
}

// Port is one port's state. Rx is what its owner sent into the switch, Tx what it was given.
type Port struct {
	Name     string            `json:"name"`
	Kind     string            `json:"kind"` // "legacy", "synthetic", "pxe"
	MAC      string            `json:"mac,omitempty"`
	Socket   string            `json:"socket,omitempty"`
	Attached bool              `json:"attached"`
	RxFrames uint64            `json:"rx_frames"`
	RxBytes  uint64            `json:"rx_bytes"`
	TxFrames uint64            `json:"tx_frames"`
	TxBytes  uint64            `json:"tx_bytes"`
	Drops    map[string]uint64 `json:"drops,omitempty"` // by reason
}

// AdapterRequest asks for an adapter that lives as long as the request's connection.
type AdapterRequest struct {
	Switch string `json:"switch"`
	Name   string `json:"name"`
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
}

// Message is one line of a stream: exactly one field is set.
type Message struct {
	Adapter *Adapter   `json:"adapter,omitempty"` // the first, where an adapter was asked for
	Boot    *BootEvent `json:"boot,omitempty"`
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

// Error is the body of an answer that is no success.
type Error struct {
	Message string `json:"error"`
}

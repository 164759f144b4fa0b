// Package qemu knows how a guest of QEMU is joined to Polder: which options its command
// line needs, which of them it has already, and whether a given QEMU can do it at all.
//
// It edits argument lists and starts nothing but `qemu -device …,help`.
package qemu

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// memoryID names the memory backend that Complete adds.
const memoryID = "polder-memory"

// defaultMemory is what QEMU gives a guest without -m, in bytes.
const defaultMemory = 128 << 20

// Adapter is an adapter as QEMU must be told of it.
type Adapter struct {
	ID        string     // QEMU's id of the device, for device_del and the QOM tree
	Socket    string     // path of the vfio-user or vhost-user socket
	BootIndex int        // place in the firmware's boot order; below 0: not given
	Synthetic *Synthetic // nil: a legacy adapter
}

// Synthetic is what QEMU must know of a synthetic adapter, which is a device of its own with our rings.
type Synthetic struct {
	MAC    string
	Queues int    // pairs, at least 1
	MTU    int    // bytes, for the guest; 0: QEMU says nothing of it
	Listen bool   // QEMU listens on the socket, instead of connecting to it
	ROM    string // file of a boot ROM, "none", or "" for the one that comes with QEMU, iPXE's
}

// reconnect is how long QEMU waits before it tries to connect again, in milliseconds.
const reconnect = 100

// DeviceArgs returns the QEMU options that attach the adapter.
func (a Adapter) DeviceArgs() []string {
	if a.Synthetic != nil {
		return a.syntheticArgs()
	}
	return a.legacyArgs()
}

// syntheticArgs returns three options: the socket, the rings' back end, and the device. What QEMU would let the
// guest's driver change without telling the back end, it does not offer.
func (a Adapter) syntheticArgs() []string {
	s := a.Synthetic
	escape := func(text string) string { return strings.ReplaceAll(text, ",", ",,") }
	device := fmt.Sprintf("virtio-net-pci,id=%s,netdev=%s-net,mac=%s,ctrl_guest_offloads=off", a.ID, a.ID, s.MAC)
	if s.MTU != 0 {
		device += fmt.Sprintf(",host_mtu=%d", s.MTU)
	}
	if s.Queues > 1 { // a vector for each queue, for the control queue, and for changes of the configuration
		device += fmt.Sprintf(",mq=on,vectors=%d", 2*s.Queues+2)
	}
	switch s.ROM {
	case "":
	case "none":
		device += ",romfile="
	default:
		device += ",romfile=" + escape(s.ROM)
	}
	if a.BootIndex >= 0 {
		device += fmt.Sprintf(",bootindex=%d", a.BootIndex)
	}
	socket := fmt.Sprintf("reconnect-ms=%d", reconnect)
	if s.Listen {
		socket = "server=on"
	}
	return []string{
		"-chardev", fmt.Sprintf("socket,id=%s-socket,path=%s,%s", a.ID, escape(a.Socket), socket),
		"-netdev", fmt.Sprintf("vhost-user,id=%s-net,chardev=%s-socket,queues=%d", a.ID, a.ID, s.Queues),
		"-device", device,
	}
}

// legacyArgs returns one option. The socket is an object, so the JSON form of -device is the only one QEMU takes.
func (a Adapter) legacyArgs() []string {
	type socket struct {
		Type string `json:"type"`
		Path string `json:"path"`
	}
	d := struct {
		Driver    string `json:"driver"`
		ID        string `json:"id"`
		Socket    socket `json:"socket"`
		BootIndex *int   `json:"bootindex,omitempty"`
	}{Driver: "vfio-user-pci", ID: a.ID, Socket: socket{"unix", a.Socket}}
	if a.BootIndex >= 0 {
		d.BootIndex = &a.BootIndex
	}
	text, err := json.Marshal(d)
	if err != nil {
		panic(err) // strings and ints always marshal
	}
	return []string{"-device", string(text)}
}

// MemoryArgs returns the QEMU options that keep the guest's memory in a memfd, which is how
// an adapter outside QEMU reaches it. size is in bytes.
func MemoryArgs(size uint64) []string {
	return []string{
		"-object", fmt.Sprintf("memory-backend-memfd,id=%s,size=%d,share=on", memoryID, size),
		"-machine", "memory-backend=" + memoryID,
	}
}

// Complete returns args (QEMU's arguments without the program) with what the adapters need
// added: shared memory unless the guest has it, the adapters themselves, and `-nic none`
// unless the caller chose adapters of QEMU's own, since QEMU otherwise adds one unasked.
// It does not change args. An error says which argument stands in the way.
func Complete(args []string, adapters []Adapter) ([]string, error) {
	opts, err := parse(args)
	if err != nil {
		return nil, err
	}
	out := slices.Clone(args)
	shared, err := opts.sharedMemory()
	if err != nil {
		return nil, err
	}
	if !shared {
		out = append(out, MemoryArgs(opts.memory)...)
	}
	if !opts.ownNICs {
		out = append(out, "-nic", "none")
	}
	for _, a := range adapters {
		if slices.Contains(opts.deviceIDs, a.ID) {
			return nil, fmt.Errorf("a device with id %q is on the command line already: give that one another id", a.ID)
		}
		out = append(out, a.DeviceArgs()...)
	}
	return out, nil
}

// options is what Complete must know of a QEMU command line.
type options struct {
	memory    uint64            // bytes, of -m
	backend   string            // -machine memory-backend=ID
	memdevs   []string          // -numa node,memdev=ID
	objects   map[string]object // memory backends by id
	ownNICs   bool              // -nic, -net, -netdev or -nodefaults is there
	deviceIDs []string          // ids of -device
}

type object struct {
	kind  string // "memory-backend-ram" and kin
	share bool
}

func parse(args []string) (*options, error) {
	o := &options{memory: defaultMemory, objects: map[string]object{}}
	for i := 0; i < len(args); i++ {
		name, ok := optionName(args[i])
		if !ok {
			continue
		}
		value := func() (string, error) {
			if i+1 >= len(args) {
				return "", fmt.Errorf("QEMU's option %s has no value", args[i])
			}
			i++
			return args[i], nil
		}
		switch name {
		case "nic", "net", "netdev":
			o.ownNICs = true
			if _, err := value(); err != nil {
				return nil, err
			}
		case "append": // the one free text, which may look like an option
			i++
		case "nodefaults":
			o.ownNICs = true
		case "m":
			v, err := value()
			if err != nil {
				return nil, err
			}
			if o.memory, err = parseMemory(v); err != nil {
				return nil, err
			}
		case "machine", "M":
			v, err := value()
			if err != nil {
				return nil, err
			}
			if b := property(v, "memory-backend"); b != "" {
				o.backend = b
			}
		case "numa":
			v, err := value()
			if err != nil {
				return nil, err
			}
			if d := property(v, "memdev"); d != "" {
				o.memdevs = append(o.memdevs, d)
			}
		case "object":
			v, err := value()
			if err != nil {
				return nil, err
			}
			o.addObject(v)
		case "device":
			v, err := value()
			if err != nil {
				return nil, err
			}
			if id := property(v, "id"); id != "" {
				o.deviceIDs = append(o.deviceIDs, id)
			}
		}
	}
	return o, nil
}

// optionName returns an option without its dashes; QEMU takes one or two.
func optionName(arg string) (string, bool) {
	name, ok := strings.CutPrefix(arg, "-")
	if !ok || name == "" {
		return "", false
	}
	return strings.TrimPrefix(name, "-"), true
}

// property finds name in QEMU's two ways of writing properties: "driver,a=b,c=d" and JSON.
func property(value, name string) string {
	if strings.HasPrefix(strings.TrimSpace(value), "{") {
		var m map[string]any
		if json.Unmarshal([]byte(value), &m) != nil {
			return "" // QEMU will say what is wrong with it
		}
		switch v := m[name].(type) {
		case string:
			return v
		case bool:
			if v {
				return "on"
			}
			return "off"
		}
		return ""
	}
	found := ""
	for f := range strings.SplitSeq(value, ",") {
		if k, v, ok := strings.Cut(f, "="); ok && k == name {
			found = v
		}
	}
	return found
}

func (o *options) addObject(value string) {
	kind, _, _ := strings.Cut(value, ",")
	if strings.HasPrefix(kind, "{") || strings.HasPrefix(kind, "qom-type=") {
		kind = property(value, "qom-type")
	}
	if !strings.HasPrefix(kind, "memory-backend-") {
		return
	}
	share := property(value, "share")
	shared := share == "on" || share == "yes" || share == "true" || share == "y"
	if share == "" {
		shared = kind == "memory-backend-memfd" // the one kind that is shared by default
	}
	o.objects[property(value, "id")] = object{kind: kind, share: shared}
}

// sharedMemory tells whether the guest's memory is one that Polder can map; an error says
// that it is some other memory the operator chose.
func (o *options) sharedMemory() (bool, error) {
	ids := o.memdevs
	if o.backend != "" {
		ids = append(ids, o.backend)
	}
	for _, id := range ids {
		b, ok := o.objects[id]
		if !ok {
			continue // QEMU will say that there is no such object
		}
		if !b.share {
			return false, fmt.Errorf("guest memory %q is private (%s): add share=on to it, so that the adapter can reach it", id, b.kind)
		}
	}
	return len(ids) > 0, nil
}

// parseMemory reads the value of -m: "512", "512M", "size=1G,slots=2,maxmem=4G". The unit
// without a suffix is MiB.
func parseMemory(v string) (uint64, error) {
	size := v
	for i, f := range strings.Split(v, ",") {
		if k, s, ok := strings.Cut(f, "="); ok && k == "size" {
			size = s
		} else if i == 0 && !ok {
			size = f
		} else if i == 0 {
			size = "" // "-m slots=2": QEMU's default size
		}
	}
	if size == "" {
		return defaultMemory, nil
	}
	digits, shift := size, uint(20)
	if i := strings.IndexByte("bkmgt", size[len(size)-1]|0x20); i >= 0 {
		digits, shift = size[:len(size)-1], uint(10*i)
	}
	n, err := strconv.ParseFloat(digits, 64)
	if err != nil || n <= 0 || n > 1<<40 {
		return 0, fmt.Errorf("-m %s: cannot read the memory size: write it like 512M or 2G", v)
	}
	const page = 1 << 20 // QEMU itself wants a multiple of the page; a MiB suits huge pages too
	return (uint64(n*float64(uint64(1)<<shift)) + page - 1) &^ (page - 1), nil
}

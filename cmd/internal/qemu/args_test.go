package qemu

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

var nic = []Adapter{{ID: "polder0", Socket: "/run/p/a.sock", BootIndex: -1}}

const nicJSON = `{"driver":"vfio-user-pci","id":"polder0","socket":{"type":"unix","path":"/run/p/a.sock"}}`

func TestComplete(t *testing.T) {
	for _, c := range []struct {
		name string
		args string
		want string // appended
	}{
		{"nothing given", "", "-object memory-backend-memfd,id=polder-memory,size=134217728,share=on -machine memory-backend=polder-memory -nic none -device " + nicJSON},
		{"memory size", "-m 512", "-object memory-backend-memfd,id=polder-memory,size=536870912,share=on -machine memory-backend=polder-memory -nic none -device " + nicJSON},
		{"size with slots", "-m size=1G,slots=2,maxmem=4G -nodefaults", "-object memory-backend-memfd,id=polder-memory,size=1073741824,share=on -machine memory-backend=polder-memory -device " + nicJSON},
		{"two dashes", "--m 1.5G --nic user", "-object memory-backend-memfd,id=polder-memory,size=1610612736,share=on -machine memory-backend=polder-memory -device " + nicJSON},
		{"shared already", "-object memory-backend-file,id=m,size=1G,mem-path=/dev/shm/x,share=on -machine q35,memory-backend=m -netdev user,id=n", "-device " + nicJSON},
		{"shared by JSON", `-object {"qom-type":"memory-backend-ram","id":"m","share":true} -machine memory-backend=m -net none`, "-device " + nicJSON},
		{"memfd is shared by default", "-object memory-backend-memfd,id=m,size=1G -numa node,memdev=m -net none", "-device " + nicJSON},
		{"a value that looks like an option's", "-append -m -net none", "-object memory-backend-memfd,id=polder-memory,size=134217728,share=on -machine memory-backend=polder-memory -device " + nicJSON},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := strings.Fields(c.args)
			got, err := Complete(slices.Clone(args), nic)
			if err != nil {
				t.Fatal(err)
			}
			if want := append(args, strings.Fields(c.want)...); !slices.Equal(got, want) {
				t.Errorf("got  %q\nwant %q", got, want)
			}
		})
	}
}

func TestCompleteRefuses(t *testing.T) {
	for _, c := range []struct{ name, args, want string }{
		{"private memory", "-object memory-backend-ram,id=m,size=1G -machine memory-backend=m", `guest memory "m" is private (memory-backend-ram): add share=on`},
		{"private memfd", "-object memory-backend-memfd,id=m,size=1G,share=off -machine memory-backend=m", "add share=on"},
		{"no memory size", "-m lots", "-m lots: cannot read the memory size"},
		{"id taken", "-device e1000,id=polder0", `a device with id "polder0" is on the command line already`},
		{"value missing", "-m", "QEMU's option -m has no value"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Complete(strings.Fields(c.args), nic)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q in it", err, c.want)
			}
		})
	}
}

func TestBootIndex(t *testing.T) {
	got := Adapter{ID: "a", Socket: "s", BootIndex: 0}.DeviceArgs()
	if want := `{"driver":"vfio-user-pci","id":"a","socket":{"type":"unix","path":"s"},"bootindex":0}`; got[1] != want {
		t.Errorf("got %s, want %s", got[1], want)
	}
}

func TestSyntheticArgs(t *testing.T) {
	const rest = "-chardev socket,id=a-socket,path=/run/p/a,,b.sock,%s -netdev vhost-user,id=a-net,chardev=a-socket,queues=%d -device virtio-net-pci,id=a,netdev=a-net,mac=00:15:5d:00:00:01,ctrl_guest_offloads=off"
	for _, c := range []struct {
		synthetic Synthetic
		bootIndex int
		want      string // after rest
	}{
		{Synthetic{Queues: 1}, -1, ""},
		{Synthetic{Queues: 4, MTU: 9000}, 2, ",host_mtu=9000,mq=on,vectors=10,bootindex=2"},
		{Synthetic{Queues: 1, Listen: true}, -1, ""},
		{Synthetic{Queues: 1, ROM: "none"}, -1, ",romfile="},
		{Synthetic{Queues: 1, ROM: "/a,b.rom"}, 0, ",romfile=/a,,b.rom,bootindex=0"},
	} {
		c.synthetic.MAC = "00:15:5d:00:00:01"
		got := Adapter{ID: "a", Socket: "/run/p/a,b.sock", BootIndex: c.bootIndex, Synthetic: &c.synthetic}.DeviceArgs()
		socket := "reconnect-ms=100"
		if c.synthetic.Listen {
			socket = "server=on"
		}
		if want := fmt.Sprintf(rest, socket, c.synthetic.Queues) + c.want; strings.Join(got, " ") != want {
			t.Errorf("got  %s\nwant %s", strings.Join(got, " "), want)
		}
	}
}

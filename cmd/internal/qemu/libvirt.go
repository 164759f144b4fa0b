package qemu

import (
	"encoding/xml"
)

// Domain is a virtual machine in libvirt's XML: what Polder's adapters need, for an operator to merge with
// the rest (libvirt's formatdomain, domainqemu).
type Domain struct {
	Name     string
	Type     string // "kvm" or "qemu"
	Memory   uint64 // bytes
	Adapters []Adapter
}

// The elements of libvirt's schema, as far as they are needed.
type (
	xmlDomain struct {
		XMLName       xml.Name       `xml:"domain"`
		Type          string         `xml:"type,attr"`
		QEMU          string         `xml:"xmlns:qemu,attr,omitempty"`
		Name          string         `xml:"name"`
		Memory        xmlMemory      `xml:"memory"`
		MemoryBacking xmlBacking     `xml:"memoryBacking"`
		VCPU          int            `xml:"vcpu"`
		OS            xmlOS          `xml:"os"`
		Interfaces    []xmlInterface `xml:"devices>interface"`
		Args          *xmlArgs       `xml:"qemu:commandline"`
	}
	xmlMemory struct {
		Unit  string `xml:"unit,attr"`
		Value uint64 `xml:",chardata"`
	}
	xmlBacking struct {
		Source xmlType `xml:"source"`
		Access xmlMode `xml:"access"`
	}
	xmlType struct {
		Type string `xml:"type,attr"`
	}
	xmlMode struct {
		Mode string `xml:"mode,attr"`
	}
	xmlOS struct {
		Type xmlOSType `xml:"type"`
	}
	xmlOSType struct {
		Arch  string `xml:"arch,attr"`
		Value string `xml:",chardata"`
	}
	xmlInterface struct {
		Type   string     `xml:"type,attr"`
		MAC    xmlAddress `xml:"mac"`
		Source xmlSocket  `xml:"source"`
		Model  xmlType    `xml:"model"`
		MTU    *xmlMTU    `xml:"mtu"`
		Driver *xmlDriver `xml:"driver"`
		Boot   *xmlBoot   `xml:"boot"`
		ROM    *xmlROM    `xml:"rom"`
	}
	xmlAddress struct {
		Address string `xml:"address,attr"`
	}
	xmlSocket struct {
		Type      string        `xml:"type,attr"`
		Path      string        `xml:"path,attr"`
		Mode      string        `xml:"mode,attr"`
		Reconnect *xmlReconnect `xml:"reconnect"`
	}
	xmlReconnect struct {
		Enabled string `xml:"enabled,attr"`
		Timeout int    `xml:"timeout,attr"` // seconds
	}
	xmlMTU struct {
		Size int `xml:"size,attr"`
	}
	xmlDriver struct {
		Queues int `xml:"queues,attr"`
	}
	xmlBoot struct {
		Order int `xml:"order,attr"`
	}
	xmlROM struct {
		Enabled string `xml:"enabled,attr,omitempty"`
		File    string `xml:"file,attr,omitempty"`
	}
	xmlArgs struct {
		Args []xmlArg `xml:"qemu:arg"`
	}
	xmlArg struct {
		Value string `xml:"value,attr"`
	}
)

// qemuNamespace is that of QEMU's own arguments in libvirt's XML.
const qemuNamespace = "http://libvirt.org/schemas/domain/qemu/1.0"

// XML returns the domain's text. libvirt knows synthetic adapters; a legacy one goes past it, as an argument of
// QEMU's.
func (d *Domain) XML() ([]byte, error) {
	x := xmlDomain{
		Type: d.Type, Name: d.Name, Memory: xmlMemory{"b", d.Memory}, VCPU: 1,
		MemoryBacking: xmlBacking{xmlType{"memfd"}, xmlMode{"shared"}},
		OS:            xmlOS{xmlOSType{"x86_64", "hvm"}},
	}
	for i := range d.Adapters {
		a := &d.Adapters[i]
		if a.Synthetic == nil {
			if x.Args == nil {
				x.QEMU, x.Args = qemuNamespace, &xmlArgs{}
			}
			for _, arg := range a.DeviceArgs() {
				x.Args.Args = append(x.Args.Args, xmlArg{arg})
			}
			continue
		}
		n := xmlInterface{
			Type: "vhostuser", MAC: xmlAddress{a.Synthetic.MAC}, Model: xmlType{"virtio"},
			Source: xmlSocket{"unix", a.Socket, "client", &xmlReconnect{"yes", 1}},
		}
		if a.Synthetic.Listen {
			n.Source.Mode, n.Source.Reconnect = "server", nil
		}
		if a.Synthetic.MTU != 0 {
			n.MTU = &xmlMTU{a.Synthetic.MTU}
		}
		if a.Synthetic.Queues > 1 {
			n.Driver = &xmlDriver{a.Synthetic.Queues}
		}
		if a.BootIndex >= 0 {
			n.Boot = &xmlBoot{a.BootIndex + 1} // libvirt counts from one
		}
		switch a.Synthetic.ROM {
		case "":
		case "none":
			n.ROM = &xmlROM{Enabled: "no"}
		default:
			n.ROM = &xmlROM{File: a.Synthetic.ROM}
		}
		x.Interfaces = append(x.Interfaces, n)
	}
	text, err := xml.MarshalIndent(x, "", "  ")
	return append(text, '\n'), err
}

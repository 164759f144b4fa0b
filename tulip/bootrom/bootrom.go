package bootrom

import (
	_ "embed"
	"encoding/binary"
	"fmt"
	"strings"
)

// The adapter that the ROM is for, as PCI configuration space identifies it.
const (
	Vendor = 0x1011 // Digital Equipment Corporation
	Device = 0x0009 // DECchip 21140
)

// Image is the option ROM. It is not to be changed.
//
//go:embed image.rom
var Image []byte

// NBP is the default boot program, for a BIOS client that has nothing else to
// boot: it says so, checks the PXE API and returns to the BIOS. It is not to be
// changed.
//
//go:embed default.nbp
var NBP []byte

// MaxSize is the largest expansion ROM a 21140 can have, in bytes (21140A
// Hardware Reference Manual, "Expansion ROM Base Address Register").
const MaxSize = 256 << 10

// Info is what an option ROM says of itself.
type Info struct {
	Size  int    // bytes in the file
	Parts []Part // the images in it, in order; at least one
}

// Part is one image of an option ROM (PCI Local Bus Specification 2.1, section
// 6.3.1).
type Part struct {
	Offset, Size   int // bytes, in the file
	Vendor, Device uint16
	Class          uint32 // base class, subclass and interface, 24 bits
	Code           CodeType
	Manufacturer   string // of the Plug and Play header; may be empty
	Product        string // likewise
	Bootable       bool   // it has a bootstrap entry vector
	UNDI           string // version of the UNDI driver in it, empty if it has none
}

// CodeType says what runs an image.
type CodeType uint8

// The code types in use (PCI Firmware Specification 3.0, table 5-4).
const (
	PCAT CodeType = 0 // x86 BIOS
	EFI  CodeType = 3
)

// String names the code type.
func (t CodeType) String() string {
	switch t {
	case PCAT:
		return "x86 BIOS"
	case EFI:
		return "EFI"
	}
	return fmt.Sprintf("code type %d", uint8(t))
}

// Offsets in an image and in the structures it points to.
const (
	headerSize  = 0x1c // through the pointer to the expansion header
	sizeAt      = 0x02 // image size, unit bytes; x86 images only
	undiPtrAt   = 0x16
	pcirPtrAt   = 0x18
	expansionAt = 0x1a
	unit        = 512

	pcirSize     = 0x18
	pcirLengthAt = 0x10 // image size, unit bytes
	pcirCodeAt   = 0x14
	pcirLastAt   = 0x15
	pcirLast     = 0x80

	pnpSize           = 0x20
	pnpManufacturerAt = 0x0e
	pnpProductAt      = 0x10
	pnpBEVAt          = 0x1a

	undiSize  = 0x16
	undiRevAt = 0x07
)

// Parse reads an option ROM and checks that a BIOS would run it on the adapter.
// The error says why it would not. It keeps no reference to rom.
func Parse(rom []byte) (Info, error) {
	info := Info{Size: len(rom)}
	if len(rom) > MaxSize {
		return info, fmt.Errorf("%d bytes are more than the adapter can have, %d", len(rom), MaxSize)
	}
	for offset, last := 0, false; !last; {
		part, final, err := parsePart(rom[offset:])
		if err != nil {
			if len(info.Parts) > 0 {
				err = fmt.Errorf("image %d, at %#x: %w", len(info.Parts)+1, offset, err)
			}
			return info, err
		}
		part.Offset = offset
		info.Parts = append(info.Parts, part)
		offset += part.Size
		last = final
	}
	for _, p := range info.Parts {
		if p.Vendor == Vendor && p.Device == Device && (p.Code == PCAT || p.Code == EFI) {
			return info, nil
		}
	}
	p := info.Parts[0]
	return info, fmt.Errorf("it is for PCI device %04x:%04x (%v), and the adapter is %04x:%04x",
		p.Vendor, p.Device, p.Code, Vendor, Device)
}

// parsePart reads the image that rom begins with, and reports whether it is the
// last one.
func parsePart(rom []byte) (p Part, last bool, err error) {
	word := func(b []byte, at int) uint16 { return binary.LittleEndian.Uint16(b[at:]) }

	if len(rom) < headerSize {
		return p, false, fmt.Errorf("%d bytes are too few for an option ROM", len(rom))
	}
	if rom[0] != 0x55 || rom[1] != 0xaa {
		return p, false, fmt.Errorf("not an option ROM: it begins with %02x %02x, not 55 aa", rom[0], rom[1])
	}
	at := int(word(rom, pcirPtrAt))
	if at < headerSize || at+pcirSize > len(rom) || string(rom[at:at+4]) != "PCIR" {
		return p, false, fmt.Errorf("no PCI option ROM: there is no PCI data structure at %#x", at)
	}
	pcir := rom[at : at+pcirSize]
	p.Vendor, p.Device = word(pcir, 4), word(pcir, 6)
	p.Class = uint32(pcir[0x0f])<<16 | uint32(pcir[0x0e])<<8 | uint32(pcir[0x0d])
	p.Code = CodeType(pcir[pcirCodeAt])
	p.Size = int(word(pcir, pcirLengthAt)) * unit
	if p.Size == 0 {
		return p, false, fmt.Errorf("the PCI data structure gives no image size")
	}
	if p.Size > len(rom) {
		return p, false, fmt.Errorf("cut short: the image has %d bytes, of which %d are there", p.Size, len(rom))
	}
	last = pcir[pcirLastAt]&pcirLast != 0
	if p.Code != PCAT {
		return p, last, nil
	}

	// A BIOS loads and sums as much as the header says.
	size := int(rom[sizeAt]) * unit
	if size == 0 || size > p.Size {
		return p, false, fmt.Errorf("the header gives a size of %d bytes, and the PCI data structure %d", size, p.Size)
	}
	var sum byte
	for _, b := range rom[:size] {
		sum += b
	}
	if sum != 0 {
		return p, false, fmt.Errorf("the checksum is wrong: the bytes add up to %#02x, not 0", sum)
	}
	image := rom[:size]
	p.readPnP(image)
	if undi, ok := structure(image, int(word(image, undiPtrAt)), undiSize, "UNDI"); ok {
		rev := undi[undiRevAt:]
		p.UNDI = fmt.Sprintf("%d.%d.%d", rev[2], rev[1], rev[0])
	}
	return p, last, nil
}

// readPnP takes the names and the boot vector from the Plug and Play expansion
// header, which may be absent (Plug and Play BIOS Specification 1.0A, section 3.2).
func (p *Part) readPnP(image []byte) {
	pnp, ok := structure(image, int(binary.LittleEndian.Uint16(image[expansionAt:])), pnpSize, "$PnP")
	if !ok {
		return
	}
	p.Manufacturer = text(image, int(binary.LittleEndian.Uint16(pnp[pnpManufacturerAt:])))
	p.Product = text(image, int(binary.LittleEndian.Uint16(pnp[pnpProductAt:])))
	p.Bootable = binary.LittleEndian.Uint16(pnp[pnpBEVAt:]) != 0
}

// structure gives the n bytes at offset at, if they are there and begin with the
// signature.
func structure(image []byte, at, n int, signature string) ([]byte, bool) {
	if at == 0 || at+n > len(image) || string(image[at:at+len(signature)]) != signature {
		return nil, false
	}
	return image[at : at+n], true
}

// text gives the printable part of a NUL-terminated string, at most 80 bytes.
func text(image []byte, at int) string {
	if at == 0 || at >= len(image) {
		return ""
	}
	b := image[at:min(at+80, len(image))]
	s, _, _ := strings.Cut(string(b), "\x00")
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, s)
}

// String describes the ROM in lines, one for the file and one for each image.
func (i Info) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d bytes, %d image(s)\n", i.Size, len(i.Parts))
	for n, p := range i.Parts {
		fmt.Fprintf(&b, "image %d: %v, PCI device %04x:%04x, class %06x, %d bytes at %#x",
			n+1, p.Code, p.Vendor, p.Device, p.Class, p.Size, p.Offset)
		if p.Product != "" || p.Manufacturer != "" {
			fmt.Fprintf(&b, ", %q by %q", p.Product, p.Manufacturer)
		}
		if p.Bootable {
			b.WriteString(", boots the machine")
		}
		if p.UNDI != "" {
			fmt.Fprintf(&b, ", UNDI %s", p.UNDI)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

package bootrom_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"polder/tulip/bootrom"
)

func ExampleParse() {
	info, err := bootrom.Parse(bootrom.Image)
	if err != nil {
		fmt.Println(err)
		return
	}
	p := info.Parts[0]
	fmt.Printf("%v for %04x:%04x, %s, UNDI %s\n", p.Code, p.Vendor, p.Device, p.Manufacturer, p.UNDI)
	// Output: x86 BIOS for 1011:0009, Polder, UNDI 2.1.0
}

// The structures that a BIOS and boot programs look for, each with its checksum.
func TestImage(t *testing.T) {
	info, err := bootrom.Parse(bootrom.Image)
	if err != nil {
		t.Fatal(err)
	}
	if len(info.Parts) != 1 || info.Parts[0].Size != len(bootrom.Image) {
		t.Fatalf("parts %+v, want one of %d bytes", info.Parts, len(bootrom.Image))
	}
	p := info.Parts[0]
	if !p.Bootable || p.Class != 0x020000 || !strings.HasPrefix(p.Product, "Polder PXE") {
		t.Errorf("a BIOS would not list %+v as a network boot device", p)
	}
	if len(bootrom.Image) > 64<<10 {
		t.Errorf("%d bytes: more than 64 KiB", len(bootrom.Image))
	}
	for _, s := range []struct {
		name    string
		pointer int // where the image has the structure's offset
		length  int
	}{
		{"$PnP", 0x1a, 0x20},
		{"UNDI", 0x16, 0x16},
	} {
		at := int(binary.LittleEndian.Uint16(bootrom.Image[s.pointer:]))
		b := bootrom.Image[at : at+s.length]
		if string(b[:4]) != s.name {
			t.Errorf("%q at %#x, want %q", b[:4], at, s.name)
		}
		if sum := sum(b); sum != 0 {
			t.Errorf("%s adds up to %#x", s.name, sum)
		}
	}
}

// The boot program is loaded to 0000:7C00 and must leave base memory for the stack
// of its own that it has behind it.
func TestNBP(t *testing.T) {
	if n := len(bootrom.NBP); n < 512 || n > 32<<10 {
		t.Errorf("%d bytes", n)
	}
	if !bytes.Contains(bootrom.NBP, []byte("Polder PXE self-test")) {
		t.Error("no banner in it")
	}
}

func sum(b []byte) (s byte) {
	for _, x := range b {
		s += x
	}
	return s
}

// edit is a copy of the image with bytes put at an offset; the image's checksum is
// balanced again.
func edit(at int, with ...byte) []byte {
	rom := bytes.Clone(bootrom.Image)
	copy(rom[at:], with)
	rom[6] -= sum(rom)
	return rom
}

func TestParseRefuses(t *testing.T) {
	pcir := int(binary.LittleEndian.Uint16(bootrom.Image[0x18:]))
	broken := bytes.Clone(bootrom.Image)
	broken[len(broken)-1]++

	for _, c := range []struct {
		name string
		rom  []byte
		want string
	}{
		{"nothing", nil, "too few"},
		{"a short file", []byte{0x55, 0xaa}, "too few"},
		{"an executable", append([]byte("MZ"), make([]byte, 1024)...), "not an option ROM: it begins with 4d 5a"},
		{"zeros", make([]byte, 1024), "begins with 00 00"},
		{"no PCI data structure", edit(pcir, 'X'), "no PCI data structure at 0x20"},
		{"a pointer behind the end", edit(0x18, 0xff, 0xff), "no PCI data structure at 0xffff"},
		{"a pointer into the header", edit(0x18, 0x00, 0x00), "no PCI data structure at 0x0"},
		{"another vendor", edit(pcir+4, 0x86, 0x80), "for PCI device 8086:0009 (x86 BIOS), and the adapter is 1011:0009"},
		{"another device", edit(pcir+6, 0x19, 0x00), "1011:0019"},
		{"another processor", edit(pcir+0x14, 1), "code type 1"},
		{"an unknown size", edit(pcir+0x10, 0, 0), "no image size"},
		{"a header without size", edit(2, 0), "header gives a size of 0"},
		{"a header beyond the image", edit(2, 0xff), "header gives a size of 130560"},
		{"cut short", bootrom.Image[:len(bootrom.Image)-512], "cut short"},
		{"a flipped bit", broken, "checksum is wrong: the bytes add up to 0x01"},
		{"a missing last image", edit(pcir+0x15, 0), "image 2, at"},
		{"too large", make([]byte, bootrom.MaxSize+1), "more than the adapter can have"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := bootrom.Parse(c.rom)
			if err == nil {
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %q does not say %q", err, c.want)
			}
		})
	}
}

// A ROM may hold images for several kinds of firmware; one for the adapter is
// enough.
func TestParseSeveralImages(t *testing.T) {
	pcir := int(binary.LittleEndian.Uint16(bootrom.Image[0x18:]))
	efi := make([]byte, 1024)
	copy(efi, []byte{0x55, 0xaa})
	efi[0x18] = 0x1c
	copy(efi[0x1c:], "PCIR")
	binary.LittleEndian.PutUint16(efi[0x1c+4:], bootrom.Vendor)
	binary.LittleEndian.PutUint16(efi[0x1c+6:], bootrom.Device)
	efi[0x1c+0x10] = byte(len(efi) / 512)
	efi[0x1c+0x14] = byte(bootrom.EFI)
	efi[0x1c+0x15] = 0x80

	info, err := bootrom.Parse(append(edit(pcir+0x15, 0), efi...))
	if err != nil {
		t.Fatal(err)
	}
	if len(info.Parts) != 2 || info.Parts[1].Code != bootrom.EFI || info.Parts[1].Offset != len(bootrom.Image) {
		t.Errorf("parts %+v", info.Parts)
	}
	// The first image alone would not do.
	foreign := edit(pcir+0x15, 0)
	foreign[pcir+6]++
	foreign[6]--
	if _, err := bootrom.Parse(append(foreign, efi...)); err != nil {
		t.Errorf("an EFI image for the adapter behind one for another: %v", err)
	}
	want := "image 2: EFI, PCI device 1011:0009, class 000000, 1024 bytes"
	if s := info.String(); !strings.Contains(s, want) {
		t.Errorf("%s does not say %q", s, want)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(bootrom.Image)
	f.Add(bootrom.Image[:1024])
	f.Add(edit(0x1a, 0xff, 0xff))
	f.Add(edit(0x16, 0xf0, 0x53))
	f.Fuzz(func(t *testing.T, rom []byte) {
		info, err := bootrom.Parse(rom)
		end := 0
		for _, p := range info.Parts {
			if p.Offset != end || p.Size <= 0 {
				t.Fatalf("part %+v does not begin at %#x", p, end)
			}
			end = p.Offset + p.Size
		}
		if end > len(rom) {
			t.Fatalf("parts end at %d of %d bytes", end, len(rom))
		}
		if err == nil && len(info.Parts) == 0 {
			t.Fatal("accepted without an image")
		}
		_ = info.String()
	})
}

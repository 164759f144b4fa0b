package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"polder/testdata/guest"
)

// The guests below have nothing to boot from but the adapter, whose own ROM SeaBIOS finds, and a disk behind it in
// the boot order. Their console is the BIOS's: SeaBIOS shows on the serial port what is printed through interrupt 10h.

// nextDevice is what the disk's boot sector prints, and then the size of base memory in KiB, hexadecimal. All but the
// last of 640 is there when no boot program and no ROM has kept any.
const nextDevice = "The next boot device has base memory of "

// exited is what the ROM says when it gives the machine back, and then what the next device says.
const exited = `(?s)PXE-M0F: Exiting Polder PXE\..*Booting from Hard Disk.*` + nextDevice + `27F`

// disk returns QEMU's arguments for a disk with that boot sector, at this place in the boot order.
func disk(t *testing.T, bootIndex int) []string {
	t.Helper()
	sector := append([]byte{
		0x31, 0xc0, //       xorw %ax, %ax
		0x8e, 0xd8, //       movw %ax, %ds
		0xbe, 0x36, 0x7c, // movw $text, %si
		0xac,       //    1: lodsb
		0x84, 0xc0, //       testb %al, %al
		0x74, 0x09, //       jz 2f
		0xb4, 0x0e, //       movb $0x0e, %ah
		0xbb, 0x07, 0x00, // movw $7, %bx
		0xcd, 0x10, //       int $0x10
		0xeb, 0xf2, //       jmp 1b
		0xcd, 0x12, //    2: int $0x12
		0xc1, 0xe0, 0x04, // shlw $4, %ax
		0xb9, 0x03, 0x00, // movw $3, %cx
		0xc1, 0xc0, 0x04, // 3: rolw $4, %ax
		0x50,       //       pushw %ax
		0x24, 0x0f, //       andb $15, %al
		0x04, 0x90, //       addb $0x90, %al: with what follows, the digit's character
		0x27,       //       daa
		0x14, 0x40, //       adcb $0x40, %al
		0x27,       //       daa
		0xb4, 0x0e, //       movb $0x0e, %ah
		0xbb, 0x07, 0x00, // movw $7, %bx
		0xcd, 0x10, //       int $0x10
		0x58,       //       popw %ax
		0xe2, 0xea, //       loop 3b
		0xf4,       //    4: hlt
		0xeb, 0xfd, //       jmp 4b
	}, nextDevice+"\x00"...)
	sector = append(sector, make([]byte, 510-len(sector))...)
	sector = append(sector, 0x55, 0xaa)
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, sector, 0o644); err != nil {
		t.Fatal(err)
	}
	return []string{
		"-drive", "if=none,id=disk,format=raw,file=" + file,
		"-device", fmt.Sprintf("ide-hd,drive=disk,bootindex=%d", bootIndex),
	}
}

// romGuest is a guest of polder run that boots through the ROM, with these flags of run's. It knows no other way.
func romGuest(t *testing.T, name string, memoryMiB int, flags ...string) *guest.Guest {
	t.Helper()
	launcher := append([]string{polder, "run", "--runtime-dir", t.TempDir(), "--bootindex", "0"}, flags...)
	return start(t, guest.Config{
		Name: name, MemoryMiB: memoryMiB, OwnMemory: true,
		Launcher: append(launcher, "--"), Args: append(disk(t, 1), "-no-reboot"),
	})
}

// write puts a file into a directory of boot files; name may have directories.
func write(t *testing.T, dir, name string, content []byte) {
	t.Helper()
	file := filepath.Join(dir, name)
	err := os.MkdirAll(filepath.Dir(file), 0o755)
	if err == nil {
		err = os.WriteFile(file, content, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestROMDefault boots with no file anywhere: the default boot program checks the PXE API and gives the machine
// back, and the BIOS goes on with its next device.
func TestROMDefault(t *testing.T) {
	t.Parallel()
	g := romGuest(t, "default", 32, "--mac", "00:15:5d:01:02:03")
	expect(t, g, bootLimit,
		`^Polder PXE 2\.1, .* MAC 00:15:5d:01:02:03`,
		`^Address 10\.21\.140\.\d+, mask 255\.255\.255\.0`,
		`^TFTP 10\.21\.140\.1: polder\.0`)
	selfTest(t, g)
	expect(t, g, bootLimit, exited)
}

// onScreen is a pattern for text on a screen of the BIOS, which may move the cursor anywhere in it.
func onScreen(text string) string {
	var pattern strings.Builder
	for _, r := range text {
		pattern.WriteString(`(?:\x1b\[[0-9;]*[A-Za-z])*` + regexp.QuoteMeta(string(r)))
	}
	return pattern.String()
}

// selfTest waits for the result of the default boot program's checks.
func selfTest(t *testing.T, g *guest.Guest) {
	t.Helper()
	match := expect(t, g, bootLimit, `^Polder PXE self-test: (\d+) of (\d+) passed`)
	if match[1] != match[2] || len(match[1]) < 2 {
		t.Errorf("%s, want all of some dozens:\n%s", match[0], g.Serial())
	}
}

// pxelinuxMenu is a configuration for pxelinux: a menu whose second entry is chosen by hand.
const pxelinuxMenu = `
ui menu.c32
menu title Polder's boot menu
label other
  menu label The other entry
  localboot 0
label linux
  menu label The entry to choose
  linux %s
  append %s
`

// pxelinuxRoot is a directory with a pxelinux, its menu and these files. The menu's entry loads kernel with these
// words on its command line.
func pxelinuxRoot(t *testing.T, kernel, words string, files ...string) string {
	t.Helper()
	root := bootFiles(t, append(files, "boot/ldlinux.c32", "boot/menu.c32", "boot/libutil.c32", "boot/libcom32.c32")...)
	write(t, root, "pxelinux.cfg/default", fmt.Appendf(nil, pxelinuxMenu, kernel, words))
	return root
}

// choose takes a menu's second entry, once its title and that entry are on the screen.
func choose(t *testing.T, g *guest.Guest, title, entry string) {
	t.Helper()
	expect(t, g, bootLimit, onScreen(title), onScreen(entry))
	if err := g.Send("\x1b[B\r"); err != nil {
		t.Fatal(err)
	}
}

// TestROMPxelinux boots Debian's installer to its userland: pxelinux and its menu over TFTP, and the kernel over
// TFTP or over HTTP with a TCP/IP stack of its own on our UNDI.
func TestROMPxelinux(t *testing.T) {
	for _, test := range []struct{ name, loader, from string }{
		{"pxelinux over TFTP", "pxelinux.0", ""},
		{"lpxelinux over TFTP", "lpxelinux.0", ""},
		{"lpxelinux over HTTP", "lpxelinux.0", "http://10.21.140.1/"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			words := guest.LinuxCommandLine("initrd="+test.from+"initrd.gz", "DEBIAN_FRONTEND=text", "locale=C", "keymap=us", "netcfg/enable=false")
			root := pxelinuxRoot(t, test.from+"linux", words, "boot/"+test.loader, "installer/linux", "installer/initrd.gz")
			g := romGuest(t, "pxelinux", 1024, "--root", root, "--boot", test.loader)
			expect(t, g, bootLimit, `PXELINUX \d`)
			choose(t, g, "Polder's boot menu", "The entry to choose")
			expect(t, g, bootLimit, `Linux version`, `Starting system log daemon`)
			how := "tftp"
			if test.from != "" {
				how = "http"
			}
			if !regexp.MustCompile(`asks for /?initrd\.gz \(` + how + `,`).MatchString(g.Stderr()) {
				t.Errorf("the initrd did not come over %s:\n%s", how, g.Stderr())
			}
		})
	}
}

// TestROMMemtest loads memtest86+ by pxelinux and waits for its screen, which it also draws on the serial port.
func TestROMMemtest(t *testing.T) {
	t.Parallel()
	g := romGuest(t, "memtest86+", 64, "--boot", "pxelinux.0", "--root",
		pxelinuxRoot(t, "memtest86+x64.bin", "console=ttyS0,115200", "boot/pxelinux.0", "boot/memtest86+x64.bin"))
	choose(t, g, "Polder's boot menu", "The entry to choose")
	expect(t, g, bootLimit, `Memtest86\+ v6\.\d+`, `Pass`)
}

// TestROMiPXE chains to iPXE, which keeps our UNDI as its driver, or resets the adapter and drives it itself. Then
// iPXE loads its script and the kernel, and that finds the adapter in order, too.
func TestROMiPXE(t *testing.T) {
	for _, test := range []struct{ file, driver string }{
		{"undionly.kpxe", `using undionly on`},
		{"ipxe.pxe", `using ds21140 on`},
	} {
		t.Run(test.file, func(t *testing.T) {
			t.Parallel()
			g := romGuest(t, test.file, 256,
				"--root", bootFiles(t, "boot/"+test.file, "guest/vmlinuz", "guest/initramfs.gz"),
				"--kernel", "vmlinuz", "--initrd", "initramfs.gz",
				"--append", guest.LinuxCommandLine("net0=dhcp", "run=ping:10.21.140.1"))
			expect(t, g, bootLimit, `^TFTP 10\.21\.140\.1: `+regexp.QuoteMeta(test.file), `iPXE initialising devices`,
				test.driver, `(?s)initramfs\.gz\.\..* ok`,
				`^T_INIT`, `^UDHCPC ip=10\.21\.140\.`, `^PING 10\.21\.140\.1 ok`)
		})
	}
}

// grubMenu is a configuration for GRUB, whose entry is chosen by hand.
const grubMenu = `
terminal_input console
terminal_output console
menuentry 'The other entry' { true }
menuentry 'The entry to choose' {
	linux (pxe)/vmlinuz %s
	initrd (pxe)/initramfs.gz
}
`

// TestROMGRUB boots GRUB, which calls the PXE API for every packet, to its menu and then a kernel.
func TestROMGRUB(t *testing.T) {
	t.Parallel()
	root := bootFiles(t, "boot/grub.0", "guest/vmlinuz", "guest/initramfs.gz")
	write(t, root, "grub/grub.cfg", fmt.Appendf(nil, grubMenu, guest.LinuxCommandLine("net0=dhcp", "run=ping:10.21.140.1")))
	g := romGuest(t, "GRUB", 256, "--root", root, "--boot", "grub.0")
	choose(t, g, "GNU GRUB", "The entry to choose")
	expect(t, g, bootLimit, `Linux version`, `^T_INIT`, `^PING 10\.21\.140\.1 ok`)
}

// TestROMWindows runs the boot program of ntldr/, which does what Windows' boot programs do. The names in the root
// are in another case than it asks for.
func TestROMWindows(t *testing.T) {
	t.Parallel()
	program, err := os.ReadFile("ntldr/ntldr.0")
	if err != nil {
		t.Fatal(err)
	}
	manager, store := pattern(300_001), pattern(20*1456) // the last one ends with a packet without data
	root := t.TempDir()
	write(t, root, "ntldr.0", program)
	write(t, root, "boot/bootmgr.exe", manager)
	write(t, root, "boot/bcd", store)
	g := romGuest(t, "windows", 32, "--root", root, "--boot", "ntldr.0")
	expect(t, g, bootLimit,
		fmt.Sprintf(`\\Boot\\BootMgr\.EXE: %d bytes, sum %d`, len(manager), sum(manager)),
		fmt.Sprintf(`\\boot\\BCD: %d bytes, sum %d`, len(store), sum(store)),
		`^ntldr: passed`, exited)
	if !strings.Contains(g.Stderr(), "missing.ttf, which is not there") {
		t.Errorf("the timeline does not show the file that is missing:\n%s", g.Stderr())
	}
}

// pattern returns n bytes that do not repeat from packet to packet.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*i>>8 ^ i>>3)
	}
	return b
}

func sum(b []byte) (sum uint32) {
	for _, v := range b {
		sum += uint32(v)
	}
	return sum
}

// twoAdapters is a guest with two adapters, of which the second comes first in the boot order, and what tells them
// apart: the file that each is given.
const twoAdapters = `
switches:
  - name: default
    pxe:
      root: %q
      boot:
        - {match: {mac: "00:15:5d:00:00:01"}, file: first.0}
        - {match: {mac: "00:15:5d:00:00:02"}, file: second.0}
vms:
  - name: two
    memory: 256M
    adapters:
      - {mac: "00:15:5d:00:00:01", bootindex: 1}
      - {mac: "00:15:5d:00:00:02", bootindex: 0}
`

// TestROMTwoAdapters boots a guest with two adapters. Both of their ROMs are in the BIOS's menu, and each in its
// turn boots: in the order that bootindex gives, and the one that is chosen.
func TestROMTwoAdapters(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	// A boot program that returns at once: xorw %ax, %ax; lret.
	for _, name := range []string{"first.0", "second.0"} {
		write(t, root, name, []byte{0x31, 0xc0, 0xcb})
	}
	d := serve(t, fmt.Sprintf(twoAdapters, root))
	const (
		first  = `MAC 00:15:5d:00:00:01`
		second = `MAC 00:15:5d:00:00:02`
	)
	args := append(disk(t, 2), "-boot", "menu=on,splash-time=2000")
	g := start(t, d.machine(t, "two", args...))
	expect(t, g, bootLimit, second, `^TFTP .*: second\.0 +3 bytes`, `Exiting Polder PXE`,
		first, `^TFTP .*: first\.0 +3 bytes`, exited)

	if _, err := g.QMP("system_reset", nil); err != nil {
		t.Fatal(err)
	}
	expect(t, g, bootLimit, `Press ESC for boot menu`)
	if err := g.Send("\x1b"); err != nil {
		t.Fatal(err)
	}
	expect(t, g, bootLimit, `1\. .*Polder PXE`, `2\. .*Polder PXE`, `3\. .*`)
	if err := g.Send("2"); err != nil {
		t.Fatal(err)
	}
	expect(t, g, bootLimit, first, `^TFTP .*: first\.0 +3 bytes`, `Exiting Polder PXE`)
}

// TestNoROM leaves the adapter without a ROM: the BIOS knows nothing of it.
func TestNoROM(t *testing.T) {
	t.Parallel()
	g := romGuest(t, "no ROM", 32, "--rom", "none")
	expect(t, g, bootLimit, nextDevice+`27F`)
	if strings.Contains(g.Serial(), "PXE") {
		t.Errorf("the console:\n%s", g.Serial())
	}
}

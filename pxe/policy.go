package pxe

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strings"

	"polder/vswitch"
)

// Client system architectures of DHCP option 93 that the policy knows by name (RFC 4578, section 2.1,
// and the IANA registry "Processor Architecture Types" that continues it).
const (
	ArchBIOS      = 0  // x86 PC with BIOS
	ArchEFIIA32   = 6  // x86 UEFI
	ArchEFIX64    = 7  // x64 UEFI
	ArchEFIBC     = 9  // EBC; what RFC 4578 says x64 UEFI sends, and some firmware does
	ArchEFIARM64  = 11 // ARM 64-bit UEFI
	ArchHTTPIA32  = 15 // x86 UEFI, boot from HTTP
	ArchHTTPX64   = 16 // x64 UEFI, boot from HTTP
	ArchHTTPARM64 = 19 // ARM 64-bit UEFI, boot from HTTP

	// ArchUnknown is the architecture of a client that sent no option 93.
	ArchUnknown = -1
)

// Client is what a guest's last DHCP message said of it. It is a value: comparable, with no memory
// shared with the message. The strings hold printable ASCII only, at most 64 bytes each.
type Client struct {
	MAC         vswitch.MAC
	UUID        UUID       // zero if the client did not say, or said zero as QEMU does without -uuid
	Arch        int        // option 93, or ArchUnknown
	UserClass   string     // option 77; iPXE says "iPXE"
	VendorClass string     // option 60; "PXEClient:Arch:00000:UNDI:002001", "HTTPClient:…"
	Hostname    string     // the reservation's, or option 12
	Addr        netip.Addr // its address; invalid before the first offer
	Server      netip.Addr // this service's address
}

// IPXE reports whether the client is iPXE, which can run scripts.
func (c Client) IPXE() bool { return c.UserClass == "iPXE" }

// PXE reports whether the client is a PXE boot ROM or iPXE, which says so too.
func (c Client) PXE() bool { return strings.HasPrefix(c.VendorClass, "PXEClient") }

// HTTP reports whether the client is UEFI firmware that boots from HTTP.
func (c Client) HTTP() bool { return strings.HasPrefix(c.VendorClass, "HTTPClient") }

// EFI reports whether the client runs on UEFI.
func (c Client) EFI() bool { return c.Arch >= ArchEFIIA32 }

// Platform names the client's architecture for people: "BIOS", "UEFI x64", "architecture 21".
func (c Client) Platform() string {
	switch c.Arch {
	case ArchUnknown:
		return "unknown"
	case ArchBIOS:
		return "BIOS"
	case ArchEFIIA32:
		return "UEFI x86"
	case ArchEFIX64, ArchEFIBC:
		return "UEFI x64"
	case ArchEFIARM64:
		return "UEFI ARM64"
	case ArchHTTPIA32:
		return "UEFI x86 HTTP"
	case ArchHTTPX64:
		return "UEFI x64 HTTP"
	case ArchHTTPARM64:
		return "UEFI ARM64 HTTP"
	}
	return fmt.Sprintf("architecture %d", c.Arch)
}

// UUID is a machine's identity of option 97, in the order of the wire.
type UUID [16]byte

// IsZero reports whether the UUID says nothing: QEMU without -uuid sends zeros, and so all its guests
// would be one.
func (u UUID) IsZero() bool { return u == UUID{} }

// String prints the UUID as SMBIOS tools and QEMU's -uuid do.
func (u UUID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16])
}

// ParseUUID reads the form that String prints, in either case.
func ParseUUID(s string) (UUID, error) {
	parts := strings.Split(s, "-")
	digits, err := hex.DecodeString(strings.Join(parts, ""))
	for i, n := range []int{8, 4, 4, 4, 12} {
		if err != nil || len(parts) != 5 || len(parts[i]) != n {
			return UUID{}, fmt.Errorf("pxe: %q is not a UUID", s)
		}
	}
	return UUID(digits), nil
}

// BootRule says what a client that matches boots. Exactly one of File, Script and Kernel is set.
//
// Script, Kernel and a File that ends in ".ipxe" need iPXE, so such a rule matches only iPXE. Any other
// client for which it is meant is given an iPXE binary of Config.Files if there is one, comes back as
// iPXE and then matches.
type BootRule struct {
	Match Match

	// File is a name in Config.Files, or a URL if the client understands URLs.
	File string

	// Script is the text of an iPXE script, a text/template over the fields and methods of Client:
	// "chain http://{{.Server}}/{{.MAC}}.ipxe". Its first line is "#!ipxe".
	Script string

	// Kernel and Initrd are names in Config.Files or URLs; Cmdline is the kernel's command line, a
	// text/template like Script. They become an iPXE script.
	Kernel  string
	Initrd  []string
	Cmdline string
}

// Match is a condition on a client: every field that is set must hold. The zero Match holds always.
type Match struct {
	MAC         string // as MAC.String prints it, "*" for any run of characters: "00:15:5d:*"
	Arch        []int  // one of these
	UserClass   string // exactly
	VendorClass string // a prefix: "HTTPClient"
	UUID        UUID   // non-zero
}

// Holds reports whether the condition holds for the client.
func (m Match) Holds(c Client) bool {
	if m.MAC != "" && !wildcard(strings.ToLower(m.MAC), c.MAC.String()) {
		return false
	}
	if len(m.Arch) > 0 && !slices.Contains(m.Arch, c.Arch) {
		return false
	}
	if m.UserClass != "" && m.UserClass != c.UserClass {
		return false
	}
	if !strings.HasPrefix(c.VendorClass, m.VendorClass) {
		return false
	}
	return m.UUID.IsZero() || m.UUID == c.UUID
}

// wildcard reports whether s matches the pattern, in which "*" stands for any run of characters.
func wildcard(pattern, s string) bool {
	first, rest, star := strings.Cut(pattern, "*")
	if !star {
		return s == pattern
	}
	s, ok := strings.CutPrefix(s, first)
	if !ok {
		return false
	}
	for i := 0; i <= len(s); i++ {
		if wildcard(rest, s[i:]) {
			return true
		}
	}
	return false
}

// script reports whether the rule's outcome is an iPXE script.
func (r BootRule) script() bool {
	return r.Script != "" || r.Kernel != "" || strings.HasSuffix(strings.ToLower(r.File), ".ipxe")
}

// Names of the files that are generated for each client. A file of Config.Files with such a name
// hides the generated one.
const (
	DefaultScript = "default.ipxe" // shows the guest its identity
	DefaultLoader = "polder.0"     // Config.DefaultNBP
)

// ruleScript is the name of the script that is generated from rule i.
func ruleScript(i int) string { return fmt.Sprintf("rule-%d.ipxe", i) }

// Reply is what a client is told to boot.
type Reply struct {
	// File is the boot file name for the DHCP reply: a path, or a URL for HTTP boot. Empty: none.
	File string
	// VendorClass is option 60 of the reply: PXE ROMs and HTTP firmware listen only to their own.
	VendorClass string
	// SkipDiscovery adds option 43 with PXE's sub-option 6 = 8: do not look for a boot server or a
	// menu, use the file name (PXE 2.1, section 2.4).
	SkipDiscovery bool
	// NoProxyDHCP adds iPXE's option 175.176 = 1: do not wait for a ProxyDHCP offer.
	NoProxyDHCP bool
}

// Policy chooses what a client boots. Decide depends on nothing but its fields and the client.
type Policy struct {
	Server netip.Addr
	Rules  []BootRule
	// Exists reports whether Config.Files has a regular file of this name. Nil: there are no files.
	Exists func(name string) bool
	// HasLoader says that Config.DefaultNBP is set.
	HasLoader bool
}

// Loaders looked for in Config.Files, in this order, when no rule decides. iPXE itself is offered
// last because what a directory with both holds for the guest is behind the first loader; iPXE is
// never offered to iPXE, which would load itself for ever.
var (
	biosLoaders     = []string{"pxelinux.0", "lpxelinux.0", "boot/grub/i386-pc/core.0", "grub/i386-pc/core.0", "grub2/i386-pc/core.0"}
	biosIPXE        = []string{"undionly.kpxe", "ipxe.pxe", "undionly.kkpxe"}
	efiX64Loaders   = []string{"bootx64.efi", "EFI/BOOT/bootx64.efi", "shimx64.efi", "bootnetx64.efi", "grubx64.efi", "grubnetx64.efi", "syslinux.efi"}
	efiX64IPXE      = []string{"snponly.efi", "ipxe.efi", "snp.efi"}
	efiIA32Loaders  = []string{"bootia32.efi", "EFI/BOOT/bootia32.efi", "grubia32.efi"}
	efiIA32IPXE     = []string{"snponly-i386.efi", "ipxe-i386.efi"}
	efiARM64Loaders = []string{"bootaa64.efi", "EFI/BOOT/bootaa64.efi", "shimaa64.efi", "grubaa64.efi", "grubnetaa64.efi"}
	efiARM64IPXE    = []string{"snponly-arm64.efi", "ipxe-arm64.efi"}
)

// rootScript is what iPXE runs from Config.Files when no rule decides.
const rootScript = "boot.ipxe"

// Decide says what to tell a client. The first rule that matches decides. Without one:
//
//   - iPXE runs the file boot.ipxe, or loads the first loader of its platform that is not iPXE, or
//     runs the generated default.ipxe.
//   - Any other client loads the first loader of its platform, iPXE's own binaries included.
//   - A BIOS for which there is none loads the built-in loader, if the configuration has one.
//
// HTTP firmware is told a full URL, since it takes nothing else.
func (p *Policy) Decide(c Client) Reply {
	var r Reply
	switch {
	case c.IPXE():
		r.NoProxyDHCP = true
	case c.HTTP():
		r.VendorClass = "HTTPClient"
	case c.PXE():
		r.VendorClass = "PXEClient"
		r.SkipDiscovery = true
	}
	r.File = p.file(c)
	if c.HTTP() && r.File != "" && !isURL(r.File) {
		r.File = "http://" + p.Server.String() + "/" + escapePath(r.File)
	}
	return r
}

func (p *Policy) file(c Client) string {
	scripted := false // a rule waits for this client to come back as iPXE
	for i, r := range p.Rules {
		if r.script() && !c.IPXE() {
			back := c
			back.UserClass = "iPXE"
			scripted = scripted || r.Match.Holds(c) || r.Match.Holds(back)
			continue
		}
		if r.Match.Holds(c) {
			if r.File != "" {
				return r.File
			}
			return ruleScript(i)
		}
	}
	loaders, ipxe := loadersFor(c.Arch)
	candidates := slices.Concat(loaders, ipxe)
	if scripted {
		candidates = slices.Concat(ipxe, loaders)
	}
	if c.IPXE() {
		candidates = append([]string{rootScript}, loaders...)
	}
	if p.Exists != nil {
		for _, name := range candidates {
			if p.Exists(name) {
				return name
			}
		}
	}
	switch {
	case c.IPXE():
		return DefaultScript
	case p.HasLoader && !c.EFI() && c.PXE():
		return DefaultLoader
	}
	return ""
}

// loadersFor returns the loaders a platform can run. A client that does not say is taken for a BIOS:
// ROMs older than option 93 are all PCs.
func loadersFor(arch int) (loaders, ipxe []string) {
	switch arch {
	case ArchBIOS, ArchUnknown:
		return biosLoaders, biosIPXE
	case ArchEFIX64, ArchEFIBC, ArchHTTPX64:
		return efiX64Loaders, efiX64IPXE
	case ArchEFIIA32, ArchHTTPIA32:
		return efiIA32Loaders, efiIA32IPXE
	case ArchEFIARM64, ArchHTTPARM64:
		return efiARM64Loaders, efiARM64IPXE
	}
	return nil, nil
}

func isURL(s string) bool { return strings.Contains(s, "://") }

// escapePath makes a file name a URL path: iPXE splits words at spaces and decodes %20.
func escapePath(name string) string {
	return (&url.URL{Path: path.Clean(name)}).EscapedPath()
}

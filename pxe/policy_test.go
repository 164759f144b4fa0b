package pxe

import (
	"slices"
	"strings"
	"testing"
)

func TestDecide(t *testing.T) {
	bios := Client{MAC: guestMAC, Arch: ArchBIOS, VendorClass: "PXEClient:Arch:00000:UNDI:002001"}
	efi := Client{MAC: guestMAC, Arch: ArchEFIX64, VendorClass: "PXEClient:Arch:00007:UNDI:003000"}
	http := Client{MAC: guestMAC, Arch: ArchHTTPX64, VendorClass: "HTTPClient:Arch:00016:UNDI:003000"}
	ipxe, ipxeEFI := bios, efi
	ipxe.UserClass, ipxeEFI.UserClass = "iPXE", "iPXE"
	with := func(c Client, edit func(*Client)) Client { edit(&c); return c }
	node := UUID{0xab}

	script := []BootRule{{Match: Match{MAC: "00:15:5d:*"}, Kernel: "linux"}}
	everything := []string{"boot.ipxe", "pxelinux.0", "undionly.kpxe", "snponly.efi", "bootx64.efi", "shimx64.efi"}
	loaders := []string{"pxelinux.0", "undionly.kpxe", "snponly.efi", "grubx64.efi"}

	for _, c := range []struct {
		name  string
		c     Client
		rules []BootRule
		files []string
		nbp   bool
		want  string
	}{
		{"no root: iPXE gets its identity", ipxe, nil, nil, true, "default.ipxe"},
		{"no root: a BIOS gets the built-in loader", bios, nil, nil, true, "polder.0"},
		{"no root: a BIOS gets nothing if there is none", bios, nil, nil, false, ""},
		{"no root: UEFI cannot run a BIOS loader", efi, nil, nil, true, ""},
		{"no root: an operating system is not told to boot", Client{Arch: ArchUnknown, VendorClass: "udhcp"}, nil, nil, true, ""},

		{"root: iPXE runs boot.ipxe", ipxe, nil, everything, true, "boot.ipxe"},
		{"root: iPXE loads what is not iPXE", ipxe, nil, loaders, true, "pxelinux.0"},
		{"root: iPXE on UEFI too", ipxeEFI, nil, loaders, true, "grubx64.efi"},
		{"root: iPXE never loads iPXE", ipxe, nil, []string{"undionly.kpxe", "ipxe.pxe"}, true, "default.ipxe"},
		{"root: a BIOS loads the first on the list", bios, nil, loaders, true, "pxelinux.0"},
		{"root: a BIOS loads iPXE if there is nothing else", bios, nil, []string{"undionly.kpxe"}, true, "undionly.kpxe"},
		{"root: with nothing for a BIOS, the built-in loader", bios, nil, []string{"bootx64.efi"}, true, "polder.0"},
		{"root: x64 UEFI", efi, nil, everything, true, "bootx64.efi"},
		{"root: x64 UEFI that says EBC", with(efi, func(c *Client) { c.Arch = ArchEFIBC }), nil, everything, true, "bootx64.efi"},
		{"root: ARM64", with(efi, func(c *Client) { c.Arch = ArchEFIARM64 }), nil, []string{"bootx64.efi", "grubaa64.efi"}, true, "grubaa64.efi"},
		{"root: x86 UEFI", with(efi, func(c *Client) { c.Arch = ArchEFIIA32 }), nil, []string{"bootx64.efi", "bootia32.efi"}, true, "bootia32.efi"},
		{"root: an architecture without a list", with(efi, func(c *Client) { c.Arch = 27 }), nil, everything, true, ""},
		{"HTTP firmware gets a URL", http, nil, everything, true, "http://10.21.140.1/bootx64.efi"},

		{"first rule wins", bios, []BootRule{{Match: Match{Arch: []int{7}}, File: "a"}, {Match: Match{Arch: []int{7, 0}}, File: "b"}, {File: "c"}}, nil, true, "b"},
		{"rule by MAC, any case", bios, []BootRule{{Match: Match{MAC: "00:15:5D:00:00:02"}, File: "a"}}, nil, true, "a"},
		{"rule by another MAC", bios, []BootRule{{Match: Match{MAC: "00:15:5d:*:03"}, File: "a"}}, nil, false, ""},
		{"rule by UUID", with(bios, func(c *Client) { c.UUID = node }), []BootRule{{Match: Match{UUID: node}, File: "a"}}, nil, true, "a"},
		{"rule by UUID, a client without", bios, []BootRule{{Match: Match{UUID: node}, File: "a"}}, nil, false, ""},
		{"rule by vendor class", http, []BootRule{{Match: Match{VendorClass: "HTTPClient"}, File: "x y.efi"}}, nil, true, "http://10.21.140.1/x%20y.efi"},
		{"rule with a URL stays", http, []BootRule{{File: "http://example.org/x.efi"}}, nil, true, "http://example.org/x.efi"},
		{"rule by user class", ipxe, []BootRule{{Match: Match{UserClass: "iPXE"}, File: "a"}}, nil, true, "a"},
		{"rule by user class, another client", bios, []BootRule{{Match: Match{UserClass: "iPXE"}, File: "a"}}, nil, false, ""},

		{"a script is generated for iPXE", ipxe, append([]BootRule{{Match: Match{Arch: []int{7}}, File: "a"}}, script...), nil, true, "rule-1.ipxe"},
		{"a script makes a BIOS load iPXE first", bios, script, loaders, true, "undionly.kpxe"},
		{"a script makes UEFI load iPXE first", efi, script, loaders, true, "snponly.efi"},
		{"a script without iPXE: the next best", bios, script, []string{"pxelinux.0"}, true, "pxelinux.0"},
		{"a script for iPXE alone works the same", bios, []BootRule{{Match: Match{UserClass: "iPXE"}, Script: "#!ipxe"}}, loaders, true, "undionly.kpxe"},
		{"another's script changes nothing", bios, []BootRule{{Match: Match{MAC: "ff:*"}, Kernel: "linux"}}, loaders, true, "pxelinux.0"},
		{"a file that is a script needs iPXE", bios, []BootRule{{File: "menu.ipxe"}}, nil, true, "polder.0"},
		{"a file that is a script", ipxe, []BootRule{{File: "menu.ipxe"}}, nil, true, "menu.ipxe"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &Policy{Server: testServer, Rules: c.rules, HasLoader: c.nbp}
			if c.files != nil {
				p.Exists = func(name string) bool { return slices.Contains(c.files, name) }
			}
			r := p.Decide(c.c)
			if r.File != c.want {
				t.Errorf("file %q, want %q", r.File, c.want)
			}
			want := Reply{File: c.want}
			switch {
			case c.c.IPXE():
				want.NoProxyDHCP = true
			case c.c.HTTP():
				want.VendorClass = "HTTPClient"
			case c.c.PXE():
				want.VendorClass, want.SkipDiscovery = "PXEClient", true
			}
			if r != want {
				t.Errorf("reply %+v, want %+v", r, want)
			}
		})
	}
}

func TestWildcard(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"abc", "abc", true}, {"abc", "abcd", false}, {"*", "", true}, {"*", "abc", true}, {"a*", "abc", true}, {"a*", "ba", false},
		{"*c", "abc", true}, {"a*c", "ac", true}, {"a*c", "abcb", false}, {"*b*", "abc", true}, {"a**c", "abc", true},
	} {
		if got := wildcard(c.pattern, c.s); got != c.want {
			t.Errorf("wildcard(%q, %q) = %v", c.pattern, c.s, got)
		}
	}
}

func TestUUID(t *testing.T) {
	const s = "44454c4c-0102-0304-0506-0708090a0b0c"
	u, err := ParseUUID(strings.ToUpper(s))
	if err != nil || u.String() != s || u.IsZero() {
		t.Errorf("%v, %v", u, err)
	}
	for _, bad := range []string{"", s[1:], s + "0", strings.Replace(s, "-", "", 1), strings.Replace(s, "4", "g", 1), s + "-00"} {
		if _, err := ParseUUID(bad); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

func TestPlatform(t *testing.T) {
	for arch, want := range map[int]string{-1: "unknown", 0: "BIOS", 7: "UEFI x64", 9: "UEFI x64", 16: "UEFI x64 HTTP", 27: "architecture 27"} {
		if got := (Client{Arch: arch}).Platform(); got != want {
			t.Errorf("%d is %q, want %q", arch, got, want)
		}
	}
}

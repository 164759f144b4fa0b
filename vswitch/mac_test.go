package vswitch

import "testing"

func TestParseMAC(t *testing.T) {
	want := MAC{0x00, 0x15, 0x5d, 0x01, 0xab, 0xff}
	for _, s := range []string{"00:15:5d:01:ab:ff", "00:15:5D:01:AB:FF", "00-15-5D-01-AB-FF"} {
		if got, err := ParseMAC(s); got != want || err != nil {
			t.Errorf("ParseMAC(%q) = %v, %v, want %v", s, got, err, want)
		}
	}
	if got := want.String(); got != "00:15:5d:01:ab:ff" {
		t.Errorf("String is %q", got)
	}
	for _, s := range []string{
		"", ":", "00155d01abff", "0015.5d01.abff", "00:15:5d:01:ab", "00:15:5d:01:ab:ff:00",
		"00:15:5d:01:ab:f", "0:015:5d:01:ab:ff", "00:15:5d:01:ab:fg", "00:15:5d-01-ab-ff",
		"00:15:5d:01:ab:", " 00:15:5d:01:ab:ff", "00:15:5d:01:ab:ff\n", "00::15:5d:01:ab:ff",
	} {
		if got, err := ParseMAC(s); err == nil {
			t.Errorf("ParseMAC(%q) = %v, want an error", s, got)
		}
	}
}

func TestAddresses(t *testing.T) {
	header := []byte{1, 2, 3, 4, 5, 6, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x08, 0x00}
	dst, src := addresses(header)
	if dst.mac() != MAC(header[:6]) || src.mac() != MAC(header[6:12]) {
		t.Errorf("addresses of % x are %v and %v", header, dst.mac(), src.mac())
	}
	if dst&groupBit == 0 || !dst.mac().IsMulticast() || src&groupBit == 0 {
		t.Error("01:… and 11:… are group addresses")
	}
	if k := macKey(0xfeffffffffff); k&groupBit != 0 || k.mac().IsMulticast() {
		t.Error("fe:… is not a group address")
	}
}

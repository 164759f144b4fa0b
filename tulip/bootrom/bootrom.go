// Package bootrom holds the adapter's PXE option ROM.
package bootrom

import _ "embed"

// Image is the option ROM for PCI device 1011:0009.
//
//go:embed image.rom
var Image []byte

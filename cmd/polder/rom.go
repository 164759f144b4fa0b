package main

import (
	"fmt"
	"os"

	"polder/tulip/bootrom"
)

// romCmd is about boot ROMs.
type romCmd struct {
	Info romInfoCmd `cmd:"" help:"Print what is in a boot ROM, and whether it suits the adapter."`
}

// romInfoCmd describes a boot ROM.
type romInfoCmd struct {
	File string `arg:"" optional:"" help:"The ROM's file. Default: the adapter's own ROM."`
}

// Run implements the command.
func (c *romInfoCmd) Run(env *environment) error {
	rom, name := bootrom.Image, "the adapter's own ROM"
	if c.File != "" {
		var err error
		if rom, err = os.ReadFile(c.File); err != nil {
			return fmt.Errorf("boot ROM: %w", err)
		}
		name = c.File
	}
	info, err := bootrom.Parse(rom)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	fmt.Fprintf(env.stdout, "%s\n%v", name, info)
	return nil
}

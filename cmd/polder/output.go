package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/goccy/go-yaml"
)

// output is the form in which a command prints what it was told.
type output struct {
	Output string `short:"o" help:"Form of the output: table, json or yaml." enum:"table,json,yaml" default:"table" placeholder:"FORM"`
}

// print writes v in the form that the operator chose; table writes the lines of a table, with tabs.
func (o output) print(w io.Writer, v any, table func(w io.Writer)) error {
	switch o.Output {
	case "json":
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	case "yaml":
		text, err := json.Marshal(v)
		if err == nil {
			text, err = yaml.JSONToYAML(text)
		}
		if err != nil {
			return err
		}
		_, err = w.Write(text)
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	table(tw)
	return tw.Flush()
}

// row writes one line of a table.
func row(w io.Writer, cells ...any) {
	for i, c := range cells {
		text := fmt.Sprint(c)
		if text == "" {
			text = "-"
		}
		if i > 0 {
			fmt.Fprint(w, "\t")
		}
		fmt.Fprint(w, text)
	}
	fmt.Fprintln(w)
}

// age writes a length of time as short as it is useful.
func age(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	}
	return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
}

// amount writes an amount of data with a unit.
func amount(n uint64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	v, i := float64(n), 0
	for v >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}

// onOff is an operator's choice that has not been made when it is empty.
type onOff string

// bool returns the choice; nil if none was made.
func (o onOff) bool() *bool {
	if o == "" {
		return nil
	}
	v := o == "on"
	return &v
}

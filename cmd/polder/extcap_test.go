package main

import (
	"bytes"
	"strings"
	"testing"
)

// A capture filter is refused, when Wireshark asks whether it is one and when it captures: it is not left out in silence.
func TestExtcapRefusesFilters(t *testing.T) {
	for _, c := range []struct {
		args   []string
		status int
	}{
		{[]string{"--extcap-interface", "polder:lan", "--extcap-capture-filter", "tcp"}, 0},
		{[]string{"--capture", "--extcap-interface", "polder:lan", "--fifo", "/nowhere", "--extcap-capture-filter", "tcp"}, 1},
		{[]string{"--capture", "--extcap-interface", "eth0", "--fifo", "/nowhere"}, 1},
	} {
		var out, errs bytes.Buffer
		status := run(c.args, &out, &errs)
		text := out.String() + errs.String()
		if status != c.status || strings.Contains(strings.Join(c.args, " "), "filter") != strings.Contains(text, noFilter) || text == "" {
			t.Errorf("%q: status %d, %s", c.args, status, text)
		}
	}
}

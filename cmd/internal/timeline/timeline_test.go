package timeline

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
	"testing"
	"time"

	"polder/cmd/internal/api"
)

var boot = []api.BootEvent{
	{MAC: "00:15:5d:00:00:01", Kind: "discover", Detail: "iPXE"},
	{MAC: "00:15:5d:00:00:01", Kind: "offer"},
	{MAC: "00:15:5d:00:00:01", Kind: "ack", IP: "10.21.140.2", Elapsed: 4 * time.Millisecond},
	{MAC: "00:15:5d:00:00:01", Kind: "request", Name: "linux", Protocol: "tftp", Size: 8_200_000, Elapsed: 40 * time.Millisecond},
	{MAC: "00:15:5d:00:00:01", Kind: "progress", Name: "linux", Size: 8_200_000, Bytes: 4_100_000, Took: 500 * time.Millisecond, Elapsed: 540 * time.Millisecond},
	{MAC: "00:15:5d:00:00:01", Kind: "done", Name: "linux", Bytes: 8_200_000, Took: time.Second, Elapsed: 1040 * time.Millisecond},
	{MAC: "00:15:5d:00:00:01", Kind: "stalled", Name: "initrd.gz", Bytes: 512, Elapsed: 3 * time.Second},
}

func show(bars bool) string {
	var b strings.Builder
	p := New(&b, bars)
	for _, e := range boot {
		p.Event(e)
	}
	return b.String()
}

func TestLines(t *testing.T) {
	want := `polder: 00:15:5d:00:00:01     0.000 s  asks for an address: iPXE
polder: 00:15:5d:00:00:01     0.004 s  has the address 10.21.140.2
polder: 00:15:5d:00:00:01     0.040 s  asks for linux (tftp, 8.2 MB)
polder: 00:15:5d:00:00:01     1.040 s  has linux: 8.2 MB in 1.000 s, 8.2 MB/s
polder: 00:15:5d:00:00:01     3.000 s  stalled in initrd.gz after 512 B
`
	if got := show(false); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestBarIsReplaced(t *testing.T) {
	got := show(true)
	bar := "\rpolder: 00:15:5d:00:00:01  linux [#############.............]  50 %    8.2 MB/s\x1b[K"
	if !strings.Contains(got, bar+"\r\x1b[Kpolder: 00:15:5d:00:00:01     1.040 s  has linux") {
		t.Errorf("no bar that the next line replaces in %q", got)
	}
}

// Whatever else is written to the terminal begins at the left edge of an empty line.
func TestBarGivesWay(t *testing.T) {
	for name, write := range map[string]func(*Printer){
		"a log line": func(p *Printer) { fmt.Fprint(p, "text\n") },
		"the end":    func(p *Printer) { p.Close(); p.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			p := New(&b, true)
			p.Event(boot[4])
			before := b.Len()
			write(p)
			got := b.String()[before:]
			if !strings.HasPrefix(got, "\r\x1b[K") || strings.Count(got, "\r") != 1 {
				t.Errorf("got %q", got)
			}
		})
	}
}

// A bar fits a terminal of 80 columns, whatever the file.
func TestBarFits(t *testing.T) {
	long := strings.Repeat("debian-installer/amd64/", 10) + "initrd.gz"
	for _, c := range []struct {
		name  string
		event api.BootEvent
		want  string
	}{
		{"short name", api.BootEvent{Name: "linux", Size: 100, Bytes: 10, Took: time.Second}, "linux [##........................]  10 %      10 B/s"},
		{"long name", api.BootEvent{Name: long, Size: 48e6, Bytes: 48e6, Took: time.Second}, "...er/amd64/initrd.gz [##########] 100 %   48.0 MB/s"},
		{"size not known", api.BootEvent{Name: "menu.ipxe", Size: -1, Bytes: 1234, Took: time.Second}, "menu.ipxe  1.2 kB  1.2 kB/s"},
		{"long name, size not known", api.BootEvent{Name: long, Size: -1, Bytes: 1e9, Took: time.Second}, "...ian-installer/amd64/initrd.gz  1.00 GB  1.00 GB/s"},
		{"more than the size", api.BootEvent{Name: "f", Size: 10, Bytes: 20, Took: time.Second}, "f [##############################] 100 %      20 B/s"},
		{"no time yet", api.BootEvent{Name: "f", Size: 10}, "f [..............................]   0 %"},
		{"beyond reason", api.BootEvent{Name: long, Size: 1 << 56, Bytes: 1 << 56, Took: 1}, "[##########] 100 %"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.event.MAC = "00:15:5d:00:00:01"
			got := bar(c.event)
			if len(got) > 79 {
				t.Errorf("%d columns: %s", len(got), got)
			}
			if !strings.Contains(got, c.want) {
				t.Errorf("got  %q\nwant %q in it", got, c.want)
			}
		})
	}
}

// kinds says how each kind of event is shown; "" is for those that say nothing new.
var kinds = map[string]string{
	"discover":      "asks for an address: D",
	"offer":         "",
	"ack":           "has the address 10.0.0.2: D",
	"nak":           "may not have the address it asked for: D",
	"decline":       "found the address 10.0.0.2 in use by another: D",
	"release":       "gave the address back: D",
	"exhausted":     "gets no address: all of the pool are taken: D",
	"request":       "asks for F (tftp, 2.0 kB)",
	"progress":      "",
	"done":          "has F: 1.0 kB in 1.000 s, 1.0 kB/s",
	"probe":         "",
	"not-found":     "asked for F, which is not there",
	"stalled":       "stalled in F after 1.0 kB",
	"aborted":       "did not get F: D",
	"error":         "did not get F: D",
	"of-the-future": "of-the-future: D",
}

func TestEachKind(t *testing.T) {
	for kind, want := range kinds {
		var b strings.Builder
		New(&b, false).Event(api.BootEvent{
			Kind: kind, MAC: "00:15:5d:00:00:01", IP: "10.0.0.2", Detail: "D",
			Name: "F", Protocol: "tftp", Size: 2000, Bytes: 1000, Took: time.Second,
		})
		if want != "" {
			want = "polder: 00:15:5d:00:00:01     0.000 s  " + want + "\n"
		}
		if got := b.String(); got != want {
			t.Errorf("%s:\ngot  %q\nwant %q", kind, got, want)
		}
	}
}

// The boot service has no kind of event that the table above does not know.
func TestNoKindForgotten(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "../../../pxe/events.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if id, ok := spec.Type.(*ast.Ident); ok && id.Name == "EventKind" {
			for i, v := range spec.Values {
				kind, err := strconv.Unquote(v.(*ast.BasicLit).Value)
				if _, ok := kinds[kind]; !ok || err != nil {
					t.Errorf("%s is %q, which the timeline does not know (%v)", spec.Names[i], kind, err)
				}
				found++
			}
		}
		return true
	})
	if found != len(kinds)-1 { // one of them is made up
		t.Errorf("the service has %d kinds of events, the table %d", found, len(kinds)-1)
	}
}

package timeline

import (
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
	bar := "\rpolder: 00:15:5d:00:00:01     0.540 s  linux [###############...............]  50 %  8.2 MB/s\x1b[K"
	if !strings.Contains(got, bar+"\r\x1b[Kpolder: 00:15:5d:00:00:01     1.040 s  has linux") {
		t.Errorf("no bar that the next line replaces in %q", got)
	}
}

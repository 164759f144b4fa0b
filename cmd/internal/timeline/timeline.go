// Package timeline shows the boots of guests to the person who waits for them: one line for
// each step, and on a terminal a bar for the file that is on its way.
package timeline

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"polder/cmd/internal/api"
)

// Printer writes boot events as text. Its methods may be called from any goroutine.
type Printer struct {
	mu   sync.Mutex
	w    io.Writer
	bars bool
	bar  bool // the cursor stands behind a bar
}

// New returns a printer to w; with bars, w is a terminal on which a line can be drawn again.
func New(w io.Writer, bars bool) *Printer { return &Printer{w: w, bars: bars} }

// Event shows e.
func (p *Printer) Event(e api.BootEvent) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.Kind == "progress" {
		if p.bars {
			fmt.Fprintf(p.w, "\r%s\x1b[K", bar(e))
			p.bar = true
		}
		return
	}
	text := describe(e)
	if text == "" {
		return
	}
	p.clear()
	fmt.Fprintf(p.w, "polder: %s %9.3f s  %s\n", e.MAC, e.Elapsed.Seconds(), text)
}

// Write implements io.Writer for lines of others, such as a log's, that go where the events go.
func (p *Printer) Write(text []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
	return p.w.Write(text)
}

// Close takes away a bar that no event has replaced. The Printer may be used again.
func (p *Printer) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
}

func (p *Printer) clear() {
	if p.bar {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.bar = false
	}
}

// describe returns a step in words; "" for one that says nothing new.
func describe(e api.BootEvent) string {
	switch e.Kind {
	case "discover":
		return join("asks for an address", e.Detail)
	case "ack":
		return join("has the address "+e.IP, e.Detail)
	case "request":
		return fmt.Sprintf("asks for %s (%s%s)", e.Name, e.Protocol, sized(e.Size))
	case "done":
		return fmt.Sprintf("has %s: %s in %.3f s, %s", e.Name, amount(e.Bytes), e.Took.Seconds(), rate(e.Bytes, e.Took))
	case "not-found":
		return fmt.Sprintf("asked for %s, which is not there", e.Name)
	case "error", "aborted":
		return join(fmt.Sprintf("did not get %s", e.Name), e.Detail)
	case "stalled":
		return fmt.Sprintf("stalled in %s after %s", e.Name, amount(e.Bytes))
	case "nak":
		return join("may not have the address it asked for", e.Detail)
	case "decline":
		return join("found the address "+e.IP+" in use by another", e.Detail)
	case "release":
		return join("gave the address back", e.Detail)
	case "exhausted":
		return join("gets no address: all of the pool are taken", e.Detail)
	case "offer", "probe":
		return "" // what follows says it: the ack, the request
	}
	return join(e.Kind, e.Detail) // a newer daemon's
}

func join(text, detail string) string {
	if detail == "" {
		return text
	}
	return text + ": " + detail
}

func sized(n int64) string {
	if n < 0 {
		return ""
	}
	return ", " + amount(n)
}

// columns is how long a bar's line may be: in the 80th, some terminals wrap.
const columns = 79

// bar draws how far a file is.
func bar(e api.BootEvent) string {
	const shortest, longest = 10, 30
	head := "polder: " + e.MAC + "  "
	room := columns - len(head)
	if e.Size <= 0 {
		tail := "  " + amount(e.Bytes) + "  " + rate(e.Bytes, e.Took)
		return head + shorten(e.Name, room-len(tail)) + tail
	}
	sent := min(e.Bytes, e.Size)
	tail := fmt.Sprintf("] %3d %% %11s", sent*100/e.Size, rate(e.Bytes, e.Took)) // one width, for a steady bar
	room -= len(" [") + len(tail)
	name := shorten(e.Name, room-shortest)
	width := min(room-len(name), longest)
	full := int(sent * int64(width) / e.Size)
	return head + name + " [" + strings.Repeat("#", full) + strings.Repeat(".", width-full) + tail
}

// shorten leaves the end of a name, which tells files apart. Names are ASCII.
func shorten(name string, n int) string {
	if len(name) <= n {
		return name
	}
	return "..." + name[len(name)-n+3:]
}

// amount writes a number of bytes as people do: decimal prefixes, three digits.
func amount(n int64) string {
	switch {
	case n >= 1e9:
		return fmt.Sprintf("%.2f GB", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	case n >= 1e3:
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	}
	return fmt.Sprintf("%d B", n)
}

func rate(n int64, took time.Duration) string {
	if took <= 0 {
		return ""
	}
	return amount(int64(float64(n)/took.Seconds())) + "/s"
}

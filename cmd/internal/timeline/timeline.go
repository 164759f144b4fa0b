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
			fmt.Fprintf(p.w, "\r%s\x1b[K", p.line(e, bar(e)))
			p.bar = true
		}
		return
	}
	text := describe(e)
	if text == "" {
		return
	}
	p.clear()
	fmt.Fprintln(p.w, p.line(e, text))
}

// Printf writes a line of its own between the events.
func (p *Printer) Printf(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
	fmt.Fprintf(p.w, "polder: "+format+"\n", args...)
}

func (p *Printer) clear() {
	if p.bar {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.bar = false
	}
}

func (p *Printer) line(e api.BootEvent, text string) string {
	return fmt.Sprintf("polder: %s %9.3f s  %s", e.MAC, e.Elapsed.Seconds(), text)
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
	case "nak", "decline", "exhausted":
		return join(e.Kind, e.Detail)
	}
	return ""
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

// bar draws how far a file is.
func bar(e api.BootEvent) string {
	const width = 30
	if e.Size <= 0 {
		return fmt.Sprintf("%s  %s  %s", e.Name, amount(e.Bytes), rate(e.Bytes, e.Took))
	}
	full := int(min(e.Bytes, e.Size) * width / e.Size)
	return fmt.Sprintf("%s [%s%s] %3d %%  %s", e.Name, strings.Repeat("#", full), strings.Repeat(".", width-full),
		min(e.Bytes, e.Size)*100/e.Size, rate(e.Bytes, e.Took))
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

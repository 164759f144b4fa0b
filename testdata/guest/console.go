package guest

import (
	"errors"
	"regexp"
	"sort"
	"sync"
	"time"
)

// console collects what a process writes and lets readers wait for patterns in it.
type console struct {
	mu     sync.Mutex
	text   []byte
	writes []write
	seen   int           // text before this was matched already
	ended  bool          // nothing more comes
	change chan struct{} // closed and replaced whenever text or ended changes
}

// write notes when the text reached a length.
type write struct {
	end int // bytes
	at  time.Time
}

var (
	errEnded = errors.New("the machine has ended")
	errTime  = errors.New("did not appear in time")
)

func newConsole() *console { return &console{change: make(chan struct{})} }

// Write appends to the text. It never fails.
func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text = append(c.text, p...)
	c.writes = append(c.writes, write{len(c.text), time.Now()})
	c.changed()
	return len(p), nil
}

// end says that nothing more will be written.
func (c *console) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	c.changed()
}

// changed wakes those who wait. The caller holds mu.
func (c *console) changed() {
	close(c.change)
	c.change = make(chan struct{})
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.text)
}

// expect waits for re in the text after the last match. It returns the match with its submatches, and when the
// match's last byte was written.
func (c *console) expect(re *regexp.Regexp, deadline time.Time) ([]string, time.Time, error) {
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	for {
		match, at, change, ended := c.match(re)
		switch {
		case match != nil:
			return match, at, nil
		case ended:
			return nil, time.Time{}, errEnded
		}
		select {
		case <-change:
		case <-timer.C:
			return nil, time.Time{}, errTime
		}
	}
}

// match looks for re once. If it is not there, change is closed when it is worth to look again.
func (c *console) match(re *regexp.Regexp) (match []string, at time.Time, change chan struct{}, ended bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	rest := c.text[c.seen:]
	loc := re.FindSubmatchIndex(rest)
	if loc == nil {
		return nil, time.Time{}, c.change, c.ended
	}
	for i := 0; i < len(loc); i += 2 {
		if loc[i] < 0 {
			match = append(match, "")
			continue
		}
		match = append(match, string(rest[loc[i]:loc[i+1]]))
	}
	c.seen += loc[1]
	i := sort.Search(len(c.writes), func(i int) bool { return c.writes[i].end >= c.seen })
	return match, c.writes[i].at, nil, false
}

package vhostuser

import "time"

// SetGrace sets how long a second front end waits.
func (s *Server) SetGrace(d time.Duration) { s.grace = d }

// SetRedial sets how long a client waits before it tries again.
func (c *Client) SetRedial(d time.Duration) { c.wait = d }

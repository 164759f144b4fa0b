package vhostuser

import "time"

// SetGrace sets how long a front end waits for others.
func (s *Server) SetGrace(d time.Duration) { s.custody.grace = d }

// SetRedial sets how long a client waits before it tries again.
func (c *Client) SetRedial(d time.Duration) { c.wait = d }

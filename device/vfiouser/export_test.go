package vfiouser

import "time"

// SetGrace sets how long a second client waits.
func (s *Server) SetGrace(d time.Duration) { s.grace = d }

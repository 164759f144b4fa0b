package capture

import (
	"context"
	"fmt"
	"io"
	"time"

	"polder/vswitch"
)

// Application is what captures name as their origin.
const Application = "Polder"

// Stream writes to w what o sees until o ends or ctx is done, and then the
// statistics. What was seen together is written together, so a reader of w is
// never behind by more than the last. The switch never waits for w: if w is
// slow, packets are lost and counted.
//
// Stream returns the first error of w, and nil if there was none. A w that can
// block for ever is to be closed when ctx is done. Nobody else may read from o.
func Stream(ctx context.Context, w io.Writer, o *vswitch.Observer) error {
	cw := NewWriter(w, Application, o.SnapLen())
	describe := func(port string) string {
		return fmt.Sprintf("port %s of switch %s", port, o.Switch().Name())
	}
	for _, p := range o.Ports() {
		cw.AddPort(p.Port, describe(p.Port), time.Now())
	}
	for {
		if err := cw.Flush(); err != nil {
			return fmt.Errorf("capture: %w", err)
		}
		packets, err := o.Read(ctx)
		if err != nil { // ended or done
			break
		}
		for i := range packets {
			p := &packets[i]
			cw.AddPort(p.Port, describe(p.Port), p.Time)
			cw.WritePacket(p)
		}
	}
	now := time.Now()
	for _, p := range o.Ports() {
		cw.AddPort(p.Port, describe(p.Port), now)
		cw.WriteStatistics(p, now)
	}
	if err := cw.Flush(); err != nil {
		return fmt.Errorf("capture: %w", err)
	}
	return nil
}

// Package porttest has the tests that every vswitch.Port must pass, and two
// ports for tests of other things: a [Recorder], which keeps what it is given,
// and a [Faulty] one, which loses, doubles and refuses frames on purpose.
//
// A port's own test makes the port with a receiver behind it, a guest's driver
// say, and describes both in a [Harness]:
//
//	func TestPort(t *testing.T) {
//		porttest.TestPort(t, func(t *testing.T) porttest.Harness {
//			d := newDriver(t)
//			return porttest.Harness{Port: d.port, Take: d.frames, Close: d.unplug}
//		})
//	}
package porttest

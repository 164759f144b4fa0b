// Package tuliptest is a guest for a 21140A: its memory, its bus, and a driver.
//
// A [Driver] is written from a driver's point of view. All it knows of the adapter is
// a [Hardware]: registers, guest memory, the interrupt pin and the wire. [Bare] is the
// Hardware that is a bare [tulip.Chip] with a [RAM]; an adapter behind a hypervisor's
// socket can be another, and runs under the same driver and the same tests.
package tuliptest

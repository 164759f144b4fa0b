// Package eventfd is a counter that one side adds to and the other waits for: the doorbell
// between a hypervisor and a device, in either direction. See eventfd(2).
//
// An [FD] comes from [New], or from a descriptor that a hypervisor passed ([FromFile], [SignalOnly]). Several
// goroutines may call Signal, Drain and Close; one at a time may call Wait, which
// parks in the runtime's network poller and takes no thread.
package eventfd

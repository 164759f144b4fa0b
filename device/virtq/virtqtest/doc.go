// Package virtqtest is the driver's half of a virtqueue, for tests and benchmarks of devices: a [RAM] in place
// of a guest's memory and a [Driver] in place of its driver. It speaks split and packed rings with
// and without indirect descriptors, EVENT_IDX and IN_ORDER, in the steps that the virtio
// specification, version 1.3, lists for drivers.
//
// A Driver is correct, also against a device on another processor. What an incorrect one
// does is in [Malformations].
package virtqtest

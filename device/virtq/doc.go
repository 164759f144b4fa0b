// Package virtq is the device's half of a virtqueue: the rings through which a guest's driver
// lends buffers to a device and gets them back. It implements split and packed rings,
// indirect descriptors, EVENT_IDX and IN_ORDER of the Virtual I/O Device specification,
// version 1.3, which comments cite by clause ("virtio 2.7.13").
//
// # Nouns
//
// The driver makes a buffer available; the device takes it, reads or writes it, and marks
// it used. A buffer is a [Chain] of descriptors: parts to read ([Chain.Out]) followed by
// parts to write ([Chain.In]), in any layout the driver likes. A [Queue] is the ring
// with the positions that the device keeps in it. A doorbell wakes the other side: the
// driver kicks, the device calls; each may tell the other not to bother.
//
// # The life of a frame
//
// Transmit:
//
//  1. [Queue.Take] fills an array of chains with what the driver made available.
//  2. The owner forwards the frames that the chains point to.
//  3. [Queue.Done] notes each chain as used, or [Queue.DoneAll] all. The driver does not see that yet.
//  4. [Queue.Publish] shows it everything at once, and says whether to ring the doorbell.
//
// Receive:
//
//  1. [Queue.FillEach] reserves a buffer for each of a batch of frames and notes them as used. [Queue.Fill]
//     does so for a frame that is not so simple, of several buffers if they may be merged.
//  2. The owner copies headers and frames into them.
//  3. After the last frame of the batch, [Queue.Publish].
//
// A device that finds nothing to do calls [Queue.Arm], which asks for a kick and looks once
// more, and sleeps if there is still nothing; awake again, it calls [Queue.Disarm].
//
// # Trust
//
// The rings are in memory that a hostile guest writes at any time. Every index,
// address, length and flag is therefore loaded once, into a variable, checked
// there and used from there; and no call does more work than a bound that the guest cannot
// raise. What breaks the rules is an error that is [ErrMalformed] and names the value. It
// is final: the positions of the two sides no longer have a meaning, so the Queue repeats the error
// from then on and the owner ends the connection.
//
// Addresses that the guest names are looked up in a [Memory]. The Queue remembers a few pieces of it: when
// the memory map changes, call [Queue.Remap]. Using guest memory, hence every method of Queue, belongs
// inside guestmem.Guard, because a hypervisor can truncate the file behind the memory.
//
// # Memory order
//
// Two processors share the rings without a lock, so the order in which one sees what the other
// wrote is part of the protocol. All of it rests on sync/atomic, whose operations on
// both amd64 and arm64 are sequentially consistent among each other, also
// towards a peer that is not written in Go:
//
//   - An atomic load acquires: what follows it is not done before it. amd64 loads in order anyway
//     (a plain MOV); arm64 has LDAR. So a descriptor read after an index, or after the flags
//     that made it available, is the one the driver wrote before it moved the index.
//   - An atomic store releases: what precedes it is visible before it. amd64 stores in order anyway;
//     arm64 has STLR. So a driver that sees a buffer used sees its content.
//   - An atomic store followed by an atomic load stays in that order. This is the one order that amd64
//     gives up for plain accesses; Go's store is an XCHG, which is a full barrier. On arm64
//     an LDAR is never done before an earlier STLR. The doorbells depend on it: each
//     side writes its index and then reads the other's wish, or writes its wish and then reads the other's index.
//     If both could read before their writes are visible, both would go to sleep.
//
// Plain loads and stores lie between those, and the compiler moves none of them across an atomic operation. Go has
// no atomic operations on 16 bits, the width of virtio's indexes; shm.go says what takes their place.
//
// # What it does not do
//
// It knows no network header and no device; it owns no goroutine, no lock and no descriptor of the
// host. One Queue is not safe for concurrent use: the owner serialises, and holds off changes
// of the memory map, while it uses the slices of a Chain.
package virtq

package virtq_test

import (
	"encoding/binary"
	"fmt"

	"polder/device/virtq"
)

// memory is guest memory from address 0 on.
type memory []byte

func (m memory) Window(gpa uint64, n int, _ bool) []byte {
	if n <= 0 || gpa > uint64(len(m)) || uint64(n) > uint64(len(m))-gpa {
		return nil
	}
	return m[gpa : gpa+uint64(n)]
}

// A device takes what a driver sends, and hands the buffer back.
func Example() {
	const desc, driver, device, buffer = 0, 64, 128, 256
	guest := make(memory, 4096)
	queue, err := virtq.New(guest, virtq.Config{Num: 4, Desc: desc, Driver: driver, Device: device})
	if err != nil {
		fmt.Println(err)
		return
	}

	// The driver: a buffer, its descriptor, an entry in the available ring, and the index last.
	n := copy(guest[buffer:], "a frame")
	binary.LittleEndian.PutUint64(guest[desc:], buffer)
	binary.LittleEndian.PutUint32(guest[desc+8:], uint32(n))
	binary.LittleEndian.PutUint16(guest[driver+4:], 0)
	binary.LittleEndian.PutUint16(guest[driver+2:], 1)

	chains := make([]virtq.Chain, 32)
	taken, err := queue.Take(chains)
	for i := range taken {
		fmt.Printf("%q\n", chains[i].Out)
		queue.Done(&chains[i], 0)
	}
	call := queue.Publish()
	fmt.Println(err, call, binary.LittleEndian.Uint16(guest[device+2:]))
	// Output:
	// ["a frame"]
	// <nil> true 1
}

package tulip_test

import (
	"fmt"

	"polder/tulip"
	"polder/tulip/tuliptest"
)

// A host moves one frame out of a chip and one into it. The few register and memory
// accesses in between are a guest's driver.
func Example() {
	ram := tuliptest.NewRAM(0x10000, 0x10000) // 64 KiB at 64 KiB
	chip := tulip.New(ram, tulip.Config{MAC: [6]byte{0x00, 0x15, 0x5d, 0x12, 0x34, 0x56}})

	// The driver: a ring of one descriptor each way, promiscuous, all interrupts.
	ram.PutUint32(0x10000, 1<<31)         // RDES0: OWN
	ram.PutUint32(0x10004, 1<<25|1536)    // RDES1: end of ring, one buffer
	ram.PutUint32(0x10008, 0x12000)       // RDES2: its address
	ram.PutUint32(0x11000, 1<<31)         // TDES0: OWN
	ram.PutUint32(0x11004, 0xe2000000|64) // TDES1: interrupt, last, first, end of ring, 64 bytes
	ram.PutUint32(0x11008, 0x13000)       // TDES2: its address
	chip.WriteConfig(4, 2, 7)             // I/O, memory, bus master
	chip.WriteCSR(3, 0x10000, 0)
	chip.WriteCSR(4, 0x11000, 0)
	chip.WriteCSR(7, 0x1ffff, 0)
	chip.WriteCSR(6, 1<<18|1<<13|1<<6|1<<1, 0) // MII port, start transmit, promiscuous, start receive

	// The host's transmit half.
	frames := make([]tulip.TxFrame, 16)
	for chip.TxPending() {
		n := chip.PollTx(frames, 0)
		for _, f := range frames[:n] {
			fmt.Println("transmitted", f.Len, "bytes in", len(f.Parts), "part")
		}
		chip.FinishTx(n, 0)
	}

	// The host's receive half.
	fmt.Println("received:", chip.Receive([][]byte{make([]byte, 100)}, 0))

	fmt.Printf("status %#x, interrupt %v\n", chip.ReadCSR(5, 0), ram.INTA)
	fmt.Printf("RDES0 %#x\n", ram.Uint32(0x10000))
	// Output:
	// transmitted 64 bytes in 1 part
	// received: accepted
	// status 0xfc670045, interrupt true
	// RDES0 0x40680300
}

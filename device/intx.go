package device

import (
	"errors"
	"time"

	"polder/device/eventfd"
)

// rekickDelay is how long a line that is still high after the guest looked at the adapter may
// stay untold. QEMU lowers the line at any register access, then asks again (UNMASK), and a
// handler's first access is a read of CSR5: its write that acknowledges the interrupt follows
// within this time, and a second, spurious interrupt is spared.
const rekickDelay = 150 * time.Microsecond

// intx is the adapter's interrupt line as the hypervisor must be told of it: a level on our
// side, an eventfd that means "it rose" on the other. Telling masks the line; the hypervisor
// unmasks it when the guest has touched the adapter. Guarded by its owner's lock.
type intx struct {
	fd     *eventfd.FD // nil while nobody listens
	level  bool        // what the chip drives
	masked bool        // told, and not asked again since
	timer  *time.Timer // runs while waiting; its callback calls due under the owner's lock
	wait   bool        // unmasked with the level high: told when the timer fires
	stuck  func()      // ends the attachment: telling was made to wait
}

// settle tells the hypervisor of a risen line. Its owner calls it once after whatever may have
// changed the level.
func (x *intx) settle() {
	switch {
	case !x.level:
		x.cancel()
	case x.wait || x.masked || x.fd == nil:
	default:
		x.kick()
	}
}

func (x *intx) kick() {
	x.masked = true
	// Another error means that the hypervisor's end is gone, and with it soon the attachment.
	if errors.Is(x.fd.Signal(), eventfd.ErrStuck) {
		x.stuck()
	}
}

// test interrupts the guest although nothing has happened.
func (x *intx) test() {
	if x.fd != nil && !x.masked {
		x.kick()
	}
}

func (x *intx) mask() { x.masked = true }

func (x *intx) unmask() {
	x.masked = false
	if x.level && !x.wait {
		x.wait = true
		x.timer.Reset(rekickDelay)
	}
}

// due ends the wait.
func (x *intx) due() {
	if x.wait {
		x.wait = false
		x.settle()
	}
}

func (x *intx) cancel() {
	if x.wait {
		x.wait = false
		x.timer.Stop()
	}
}

// listen makes fd the one to tell; nil for none. It closes the one before.
func (x *intx) listen(fd *eventfd.FD) {
	if x.fd != nil {
		x.fd.Close()
	}
	x.cancel()
	x.fd, x.masked = fd, false
	x.settle()
}

package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"polder/testdata/guest"
)

// migrationLimit is far above what a migration takes on a busy machine.
const migrationLimit = 2 * time.Minute

// TestMigrate moves a Linux guest with a synthetic adapter from one QEMU to another and on to a third, all on the
// adapter's one socket, while byte streams run in both directions. Neither stream breaks, what arrives is what was sent, and so
// is what the guest received before it moved and looks at after that.
func TestMigrate(t *testing.T) {
	t.Parallel()
	for _, rings := range []string{"split", "packed"} {
		t.Run(rings, func(t *testing.T) {
			d := serve(t, fmt.Sprintf(syntheticSwitch, 1))
			machine := func(vm, ip string) guest.Config {
				args := append(guest.Linux(cache, "net0="+ip+"/24", "run=hold"), "-no-reboot")
				if rings == "packed" {
					args = append(args, "-global", "virtio-net-pci.packed=on")
				}
				return d.machine(t, vm, args...)
			}
			here, there := machine("a", "10.21.140.11"), machine("b", "10.21.140.12")
			a, b := start(t, here), start(t, there)
			for _, g := range []*guest.Guest{a, b} {
				expect(t, g, bootLimit, `^T_HOLD`)
				receiveStream(t, g)
			}
			// Memory changes faster than it can be moved, so the migration does not end before it is told to.
			command(t, a, "(while [ ! -e /tmp/stop ]; do dd if=/dev/zero of=/tmp/dirty bs=1M count=16 conv=notrunc 2>/dev/null; sleep 0.05; done) &")
			sendStream(t, a, "10.21.140.12")
			sendStream(t, b, "10.21.140.11")
			// A third stream, of a few frames when the memory was moved once. The guest does not touch these before it has moved,
			// so it is the adapter alone that knows of the pages.
			const few = 48 << 10
			command(t, a, "mkfifo /tmp/quiet; nc -l -p 5002 <>/tmp/quiet >/tmp/few & echo $! >/tmp/sleeper")
			command(t, b, "mkfifo /tmp/few; sleep 100000 >/tmp/few & (until nc 10.21.140.11 5002 </tmp/few 2>/dev/null; do sleep 0.1; done) &")
			for hop := range 2 {
				before := receivedBytes(t, b)
				command(t, a, "kill -STOP $(cat /tmp/sleeper)")
				a = migrate(t, a, here, func() {
					command(t, b, fmt.Sprintf("dd if=/tmp/data of=/tmp/few bs=%d skip=%d count=1 2>/dev/null; sleep 0.5", few, hop))
				})
				command(t, a, fmt.Sprintf("kill -CONT $(cat /tmp/sleeper); until [ $(wc -c </tmp/few) = %d ]; do sleep 0.1; done", (hop+1)*few))
				if moved := receivedBytes(t, b) - before; moved < 1e5 {
					t.Errorf("b received %d bytes during the migration: the stream stands still", moved)
				} else {
					t.Logf("b received %d bytes meanwhile", moved)
				}
			}
			sent, got := command(t, b, fmt.Sprintf("head -c %d /tmp/data | sha256sum", 2*few)), command(t, a, "sha256sum </tmp/few")
			if sent != got {
				t.Errorf("what came while the guest moved has the checksum %s, want %s", got, sent)
			}
			for _, g := range []*guest.Guest{a, b} {
				command(t, g, "touch /tmp/stop")
			}
			for _, pair := range [][2]*guest.Guest{{a, b}, {b, a}} {
				command(t, pair[1], "until [ -e /tmp/all ]; do sleep 0.1; done")
				sent, got := command(t, pair[0], "cat /tmp/sent; cat /tmp/begin"), command(t, pair[1], "cat /tmp/got; sha256sum </tmp/first")
				if sent != got || len(strings.Fields(sent)) != 4 {
					t.Errorf("sent\n%s\ngot\n%s", sent, got)
				}
			}
		})
	}
}

// receiveStream has a guest take one stream on port 5001. It keeps the first 8 MiB in /tmp/first and the checksum
// of all in /tmp/got, and makes /tmp/all when the stream has ended.
func receiveStream(t *testing.T, g *guest.Guest) {
	t.Helper()
	command(t, g, "mkfifo /tmp/keep /tmp/silence")
	command(t, g, "(head -c 8388608 >/tmp/first; cat >/dev/null) </tmp/keep &")
	command(t, g, "(nc -l -p 5001 <>/tmp/silence | tee /tmp/keep | sha256sum >/tmp/got; touch /tmp/all) &")
}

// sendStream has a guest send a stream until there is /tmp/stop: the same 4 MiB over and over. The
// checksum of all is in /tmp/sent, of the first 8 MiB in /tmp/begin.
func sendStream(t *testing.T, g *guest.Guest, to string) {
	t.Helper()
	command(t, g, "dd if=/dev/urandom of=/tmp/data bs=1M count=4 2>/dev/null; mkfifo /tmp/copy")
	command(t, g, "for i in 1 2; do cat /tmp/data; done | sha256sum >/tmp/begin")
	command(t, g, "sha256sum </tmp/copy >/tmp/sent &")
	command(t, g, "(i=0; while [ $i -lt 2 ] || [ ! -e /tmp/stop ]; do cat /tmp/data; i=$((i + 1)); done | tee /tmp/copy | nc "+to+" 5001) &")
}

// migrate moves a running guest to a new QEMU that is started like its own, and returns that. When all memory was moved
// once, and what changes is moved over and over, it calls meanwhile.
func migrate(t *testing.T, from *guest.Guest, c guest.Config, meanwhile func()) *guest.Guest {
	t.Helper()
	channel := "unix:" + filepath.Join(t.TempDir(), "channel")
	c.Args = append(c.Args[:len(c.Args):len(c.Args)], "-incoming", channel)
	to := start(t, c)
	qmp(t, to, "query-status", nil) // it listens
	var state struct {
		Status   string
		Error    string `json:"error-desc"`
		Downtime int    // ms
		RAM      struct {
			Rounds int `json:"dirty-sync-count"`
		}
	}
	until := func(done func() bool) {
		t.Helper()
		for deadline := time.Now().Add(migrationLimit); ; time.Sleep(50 * time.Millisecond) {
			if err := json.Unmarshal(qmp(t, from, "query-migrate", nil), &state); err != nil {
				t.Fatal(err)
			}
			if done() {
				return
			}
			if state.Status == "failed" || time.Now().After(deadline) {
				t.Fatalf("migration: %+v\n%s", state, to.Stderr())
			}
		}
	}
	qmp(t, from, "migrate-set-parameters", map[string]int{"max-bandwidth": 32 << 20, "downtime-limit": 1})
	qmp(t, from, "migrate", map[string]string{"uri": channel})
	until(func() bool { return state.RAM.Rounds >= 2 })
	meanwhile()
	qmp(t, from, "migrate-set-parameters", map[string]int{"max-bandwidth": 4 << 30, "downtime-limit": 300})
	until(func() bool { return state.Status == "completed" })
	t.Logf("migrated in %d rounds; the guest stood still for %d ms", state.RAM.Rounds, state.Downtime)
	if err := to.WaitEvent(migrationLimit, "RESUME"); err != nil {
		t.Fatal(err)
	}
	from.Close()
	return to
}

// receivedBytes is how many bytes the guest's eth0 has received.
func receivedBytes(t *testing.T, g *guest.Guest) int {
	t.Helper()
	n, err := strconv.Atoi(command(t, g, "cat /sys/class/net/eth0/statistics/rx_bytes"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// qmp runs a QMP command.
func qmp(t *testing.T, g *guest.Guest, name string, arguments any) json.RawMessage {
	t.Helper()
	result, err := g.QMP(name, arguments)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

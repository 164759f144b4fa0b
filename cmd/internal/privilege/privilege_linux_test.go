package privilege

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// child is set in a process that gives up its privileges and prints what its threads have left.
const child = "POLDER_TEST_LIMIT"

func TestMain(m *testing.M) {
	keep, ok := os.LookupEnv(child)
	if !ok {
		os.Exit(m.Run())
	}
	stop := make(chan bool)
	for range 4 { // threads that are there already
		go func() { runtime.LockOSThread(); <-stop }()
	}
	var caps []int
	if keep == "network" {
		caps = Network
	}
	had := Have(Network...)
	if err := Limit(caps...); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	if Have(Network...) != (had && keep == "network") {
		fmt.Println("Have does not tell what is kept")
		os.Exit(1)
	}
	go func() { runtime.LockOSThread(); <-stop }()
	files, _ := filepath.Glob("/proc/self/task/*/status")
	for _, f := range files {
		text, _ := os.ReadFile(f)
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "Cap") || strings.HasPrefix(line, "NoNewPrivs") {
				fmt.Print(strings.Join(strings.Fields(line), " "), "; ")
			}
		}
		fmt.Println()
	}
	os.Exit(0)
}

// Every thread has what was kept and no more. The program that shows it is built without cgo, as the daemon is.
func TestLimit(t *testing.T) {
	exe := filepath.Join(t.TempDir(), "limit.test")
	build := exec.Command("go", "test", "-c", "-o", exe, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		t.Fatal(err)
	}
	network := uint64(0)
	for _, c := range Network {
		if has(sets, c) {
			network |= 1 << c
		}
	}
	for keep, want := range map[string]uint64{"nothing": 0, "network": network} {
		t.Run(keep, func(t *testing.T) {
			cmd := exec.Command(exe)
			cmd.Env = append(os.Environ(), child+"="+keep)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
			if len(lines) < 5 {
				t.Errorf("only %d threads", len(lines))
			}
			for _, l := range lines {
				for _, set := range []string{"CapPrm", "CapEff"} {
					if w := fmt.Sprintf("%s: %016x; ", set, want); !strings.Contains(string(l), w) {
						t.Errorf("%s\nwant %s in it", l, w)
					}
				}
				if !strings.Contains(string(l), "CapInh: 0000000000000000; ") || !strings.Contains(string(l), "CapAmb: 0000000000000000; ") || !strings.Contains(string(l), "NoNewPrivs: 1;") {
					t.Errorf("%s", l)
				}
			}
		})
	}
}

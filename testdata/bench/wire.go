package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// The TFTP servers by themselves, with one client that is a program of the host in a namespace of its own. A peer is
// a program too, in another namespace at the other end of a pair of virtual Ethernet devices. Polder's boot service
// is on a switch, with a TAP device in the client's namespace as the other port. Either way a packet is copied into
// the server's process and wakes it, and the answer is copied out and wakes the client.

var wireComparisons = []comparison{
	{name: "tftp-wire-w1", unit: "MiB/s", higher: true, ours: wireOurs(1), peer: wirePeer(1, "dnsmasq",
		"--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--port=0", "--pid-file=",
		"--log-facility=/dev/null", "--interface=wire0", "--bind-interfaces", "--enable-tftp", "--tftp-root")},
	{name: "tftp-wire-w16", unit: "MiB/s", higher: true, ours: wireOurs(16), peer: wirePeer(16, "atftpd",
		"--daemon", "--no-fork", "--logfile", "/dev/null", "--verbose=0", "--user", "root.root")},
}

// wireSize is the size of the file, in bytes: about a second of transfer.
const wireSize = 64 << 20

// wireBlock is the largest block that fits a frame: the MTU of 1500 without the IPv4, UDP and TFTP headers.
const wireBlock = 1500 - 20 - 8 - 4

// wireRoot makes a directory with the file.
func wireRoot() (dir string, err error) {
	if dir, err = os.MkdirTemp(scratch, "wire-"); err != nil {
		return "", err
	}
	content := make([]byte, wireSize)
	rand.NewChaCha8([32]byte{}).Read(content)
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "file"), content, 0o644)
}

// wireFetch loads the file from 10.9.0.1 with atftp in the namespace and returns the rate in MiB/s.
func wireFetch(client *namespace, root string, window int) (float64, error) {
	local := filepath.Join(root, "received")
	cmd := exec.Command(cache.Path("bin/atftp"), "--option", fmt.Sprintf("blksize %d", wireBlock),
		"--option", fmt.Sprintf("windowsize %d", window), "--get", "--remote-file", "file", "--local-file", local, "10.9.0.1")
	var out []byte
	begin := time.Now()
	err := client.do(func() (err error) {
		out, err = cmd.CombinedOutput()
		return err
	})
	took := time.Since(begin)
	if err != nil {
		return 0, fmt.Errorf("atftp: %w: %s", err, out)
	}
	info, err := os.Stat(local)
	if err != nil {
		return 0, err
	}
	if info.Size() != wireSize {
		return 0, fmt.Errorf("atftp received %d bytes of %d: %s", info.Size(), wireSize, out)
	}
	return wireSize / took.Seconds() / (1 << 20), os.Remove(local)
}

// wirePeer measures a server that is started with these arguments and the directory to serve.
func wirePeer(window int, server string, arguments ...string) func() (float64, error) {
	return func() (float64, error) {
		root, err := wireRoot()
		if err != nil {
			return 0, err
		}
		defer os.RemoveAll(root)
		client, err := newNamespace()
		if err != nil {
			return 0, err
		}
		defer client.close()
		far, err := newNamespace()
		if err != nil {
			return 0, err
		}
		defer far.close()
		for _, step := range []struct {
			in        *namespace
			arguments string
		}{
			{far, "link add wire0 type veth peer name wire0 netns " + client.path},
			{far, "addr add 10.9.0.1/24 dev wire0"},
			{far, "link set wire0 up"},
			{client, "addr add 10.9.0.2/24 dev wire0"},
			{client, "link set wire0 up"},
		} {
			if err := step.in.ip(step.arguments); err != nil {
				return 0, err
			}
		}
		stop, err := far.background(server, append(arguments, root)...)
		if err != nil {
			return 0, err
		}
		defer stop()
		time.Sleep(500 * time.Millisecond) // the server binds its socket
		return wireFetch(client, root, window)
	}
}

// wireOurs measures Polder's boot service.
func wireOurs(window int) func() (float64, error) {
	return func() (float64, error) {
		root, err := wireRoot()
		if err != nil {
			return 0, err
		}
		defer os.RemoveAll(root)
		client, err := newNamespace()
		if err != nil {
			return 0, err
		}
		defer client.close()
		l, err := newLab(client, "10.9.0.2/24")
		if err != nil {
			return 0, err
		}
		defer l.close()
		if err := l.bootService("10.9.0.1/24", root); err != nil {
			return 0, err
		}
		return wireFetch(client, root, window)
	}
}

package main

import (
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// message is a vhost-user message with a body of 64 bits.
func message(request, flags uint32, body uint64) []byte {
	m := binary.NativeEndian.AppendUint32(nil, request)
	m = binary.NativeEndian.AppendUint32(m, flags)
	m = binary.NativeEndian.AppendUint32(m, 8)
	return binary.NativeEndian.AppendUint64(m, body)
}

// send sends a message with a descriptor unless file is nil, and returns what arrives at the other end.
func send(t *testing.T, from, to *net.UnixConn, m []byte, file *os.File) (arrived []byte, files int) {
	t.Helper()
	var rights []byte
	if file != nil {
		rights = unix.UnixRights(int(file.Fd()))
	}
	if _, _, err := from.WriteMsgUnix(m, rights, nil); err != nil {
		t.Fatal(err)
	}
	arrived, ancillary := make([]byte, len(m)), make([]byte, 256)
	n, oobn, _, _, err := to.ReadMsgUnix(arrived, ancillary)
	if err == nil {
		_, err = io.ReadFull(to, arrived[n:])
	}
	if err != nil {
		t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(ancillary[:oobn])
	if err != nil {
		t.Fatal(err)
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			t.Fatal(err)
		}
		files += len(fds)
	}
	closeRights(ancillary[:oobn])
	return arrived, files
}

func TestMaskFeatures(t *testing.T) {
	dir := t.TempDir()
	back, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "back")})
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	mask, err := maskFeatures(filepath.Join(dir, "front"), filepath.Join(dir, "back"), 1<<34|1<<17)
	if err != nil {
		t.Fatal(err)
	}
	defer mask.close()
	frontEnd, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(dir, "front")})
	if err != nil {
		t.Fatal(err)
	}
	defer frontEnd.Close()
	backEnd, err := back.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer backEnd.Close()
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()

	const offered = 1<<34 | 1<<17 | 1<<15 | 1<<0
	for _, c := range []struct {
		name     string
		from, to *net.UnixConn
		message  []byte
		file     *os.File
		want     uint64
	}{
		{"features asked for", frontEnd, backEnd, message(getFeatures, 1, offered), nil, offered},
		{"features offered", backEnd, frontEnd, message(getFeatures, 1|flagReply, offered), nil, 1<<15 | 1<<0},
		{"another answer", backEnd, frontEnd, message(15, 1|flagReply, offered), nil, offered},
		{"a descriptor", frontEnd, backEnd, message(13, 1, 2), file, 2},
	} {
		arrived, files := send(t, c.from, c.to, c.message, c.file)
		if got := binary.NativeEndian.Uint64(arrived[messageHeader:]); got != c.want || string(arrived[:messageHeader]) != string(c.message[:messageHeader]) {
			t.Errorf("%s: % x, want the body %#x", c.name, arrived, c.want)
		}
		if (files == 1) != (c.file != nil) {
			t.Errorf("%s: %d descriptors", c.name, files)
		}
	}
	backEnd.Close()
	if n, err := frontEnd.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after the back end's end: %d bytes, error %v, want EOF", n, err)
	}
}

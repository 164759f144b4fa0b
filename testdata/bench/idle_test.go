package main

import (
	"os"
	"testing"
)

func TestProcessorTime(t *testing.T) {
	before, err := processorTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 { // some work
		if _, err := os.ReadFile("/proc/self/stat"); err != nil {
			t.Fatal(err)
		}
	}
	if after, err := processorTime(os.Getpid()); after <= before || err != nil {
		t.Errorf("%v, and %v after some work, %v", before, after, err)
	}
	if _, err := processorTime(-1); err == nil {
		t.Error("no error for a process that there is not")
	}
}

func TestSocketOf(t *testing.T) {
	args := []string{"-m", "1G", "-chardev", "socket,id=a,path=/run/a.sock,reconnect-ms=100", "-device", "x,path=/none"}
	if got := socketOf(args); got != "/run/a.sock" {
		t.Errorf("got %q", got)
	}
	if got := socketOf(args[:2]); got != "" {
		t.Errorf("got %q", got)
	}
}

package main

import "testing"

func TestHop(t *testing.T) {
	c, err := twoCores()
	if err != nil {
		t.Fatal(err)
	}
	if ns, err := hop(c); err != nil || ns <= 0 {
		t.Errorf("hop: %v ns, error %v", ns, err)
	}
}

# Polder. `make` builds bin/polder; `make demo` and `make test` set up what they need by
# themselves (QEMU, kernels, boot files: unpacked under .cache, nothing is installed).

GO      ?= go
BENCH   ?= all
export POLDER_CACHE ?= $(CURDIR)/.cache

# The packages under testdata are not in ./...
E2E = $(sort $(patsubst %/,./%,$(dir $(wildcard testdata/*/*.go))))

.PHONY: all build demo test unit race e2e bench lint setup rom clean

all: build

build:
	$(GO) build -o bin/polder ./cmd/polder

# Network-boot a real guest through the legacy adapter, and show it.
demo: build
	testdata/setup qemu ipxe installer
	$(GO) run ./testdata/demo

# All tests: static checks, unit tests, the race detector, real guests.
test: setup lint unit race e2e

setup:
	testdata/setup

lint:
	@out=$$(gofmt -l cmd device pxe testdata tulip vswitch); test -z "$$out" || { echo "gofmt would change: $$out"; exit 1; }
	$(GO) vet ./... $(E2E)
	$(GO) tool staticcheck ./... $(E2E)

unit:
	$(GO) test ./...

race:
	$(GO) test -race ./...

e2e: build
	$(GO) test -count=1 -timeout 15m $(E2E)

# Comparisons with peers in the same run, one line each: make bench BENCH=tftp-wire-w1
bench: build setup
	$(GO) run ./testdata/bench $(BENCH)

clean:
	rm -rf bin

# Polder. `make` builds bin/polder; `make demo` and `make test` set up what they need by
# themselves (QEMU, kernels, boot files: unpacked under .cache, nothing is installed).

GO      ?= go
BENCH   ?= all
export POLDER_CACHE ?= $(CURDIR)/.cache

# What tests call and the machine does not have, they find in the cache.
export PATH := $(PATH):/usr/sbin:/sbin:$(POLDER_CACHE)/bin

# The packages under testdata are not in ./...
E2E = $(sort $(patsubst %/,./%,$(dir $(wildcard testdata/*/*.go))))

# The compiler whose output is committed: Debian 12's. Another one makes other bytes of the same source.
ROM_CC = 12.2.0

.PHONY: all build deb demo test unit race e2e bench lint setup rom rom-check clean

all: build

# Without cgo: one file for any Linux, and a daemon that can give up its privileges.
build:
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/polder ./cmd/polder

# A Debian package with the service: bin/polder_VERSION_ARCH.deb.
deb: build
	cmd/polder/service/deb bin

# Network-boot a real guest through the legacy adapter, and show it.
demo: build
	testdata/setup qemu ipxe installer
	$(GO) run ./testdata/demo

# All tests: static checks, unit tests, the race detector, the boot ROM from its source, real guests.
test: setup lint rom-check unit race e2e

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
	$(GO) test -count=1 -timeout 30m $(E2E)

# Comparisons with peers in the same run, one line each: make bench BENCH=tftp-wire-w1
bench: build setup
	$(GO) run ./testdata/bench $(BENCH)

# The boot programs in 16-bit code: the adapter's ROM, the default boot program, and one for the tests.
rom:
	$(MAKE) -C tulip/bootrom/src
	$(MAKE) -C testdata/e2e/ntldr

# The committed images are what the source makes. In CI the compiler must be the one that made them.
rom-check:
	@if [ "$$(gcc -dumpfullversion)" = $(ROM_CC) ]; then \
		set -e; rm -rf bin/rom; mkdir -p bin/rom; \
		$(MAKE) -s -C tulip/bootrom/src OUT=$(CURDIR)/bin/rom BUILD=$(CURDIR)/bin/rom/build; \
		$(MAKE) -s -C testdata/e2e/ntldr OUT=$(CURDIR)/bin/rom BUILD=$(CURDIR)/bin/rom/ntldr; \
		for image in tulip/bootrom/image.rom tulip/bootrom/default.nbp testdata/e2e/ntldr/ntldr.0; do \
			cmp $$image bin/rom/$$(basename $$image) || { echo "$$image is not what its source makes: run make rom and commit it"; exit 1; }; \
		done; echo "the boot programs are what their source makes"; \
	else \
		echo "the boot programs were not compared with their source: gcc is not $(ROM_CC)"; test -z "$$CI"; \
	fi

clean:
	rm -rf bin

# SPDX-License-Identifier: Apache-2.0
# `make` lists the targets. `make run` and `make test` do all their own set-up on Debian 12 with a Swift toolchain.

SWIFT_BUILD := swift build -c release
BIN := .build/release
SOURCES := Package.swift Sources Tests

.DEFAULT_GOAL := help
.PHONY: help run test build unit interop lint fmt bench fuzz toolchain packages test-packages clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

run: toolchain packages ## install what is needed, build, start the server and print its URL
	$(SWIFT_BUILD) --product coder
	ln -sf coder $(BIN)/coder-wireguard
	$(SWIFT_BUILD) --product coder-slim
	strip -o $(BIN)/coder-slim.stripped $(BIN)/coder-slim
	$(BIN)/coder server $(ARGS)

test: toolchain packages test-packages lint build unit ## install what is needed, then lint, build and run every test

build: toolchain ## build everything, tests included
	$(SWIFT_BUILD) --build-tests
	ln -sf coder $(BIN)/coder-wireguard
	strip -o $(BIN)/coder-slim.stripped $(BIN)/coder-slim

unit: ## run the tests that are built already
	scripts/run-tests

interop: build ## only the tests against real peers (wireguard-go, OpenSSH, the kernel), as root
	scripts/run-tests --filter 'Interop|EndToEnd|NetstackKernelTests'

lint: ## check the format of all sources
	@git ls-files -co --exclude-standard '*.swift' | grep -v '\.pb\.swift$$' | xargs swift format lint --strict

fmt: ## format all sources in place
	@git ls-files -co --exclude-standard '*.swift' | grep -v '\.pb\.swift$$' | xargs swift format -i

bench: toolchain packages test-packages ## measure against the peers and print the tables
	$(SWIFT_BUILD)
	benchmarks/run

fuzz: toolchain packages ## long random runs of the parsers and simulators (SEEDS=1000)
	$(SWIFT_BUILD) --build-tests
	SIM_SEEDS=$${SEEDS:-1000} swift test -c release --skip-build --filter 'Fuzz|Simulat|Soak|NetstackKernelTests'

toolchain:
	@command -v swift >/dev/null || { echo "swift is not on PATH: install the Swift 6.3 toolchain for Debian 12 from swift.org/install/linux and try again" >&2; exit 1; }

packages:
	@scripts/install-packages build

test-packages:
	@scripts/install-packages test

clean: ## remove what was built
	rm -rf .build .build-*

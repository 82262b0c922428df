# Postern's commands for people and for CI. Everything that touches a network runs in namespaces, and needs root.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
# What Cargo.lock says is what is built.
LOCKED ?= --locked

# Compiled dependencies are shared between checkouts where a directory for them is there; CI makes it.
SHARED_TARGET := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/postern-target
ifeq ($(origin CARGO_TARGET_DIR),undefined)
  ifeq ($(CI),true)
    $(shell mkdir -p "$(SHARED_TARGET)")
  endif
  ifneq ($(wildcard $(SHARED_TARGET)/.),)
    export CARGO_TARGET_DIR := $(SHARED_TARGET)
  endif
endif

.PHONY: help
help: ## Shows this.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

.PHONY: demo
demo: install-deps ## Tells the story of a grant, step by step, with real programs. Within half a minute after it nothing is left.
	@packaging/demo.sh

.PHONY: demo-ha
demo-ha: install-deps ## Kills brokers and Redis while a window is open, and shows that its user notices nothing.
	@packaging/demo.sh ha

.PHONY: test
test: install-deps build ## Runs every test, leaves a JUnit file, and names the ten slowest.
	@packaging/config-manual.py check "$${CARGO_TARGET_DIR:-target}/debug"
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
		passed=0; $(CARGO) nextest run $(LOCKED) --workspace || passed=$$?; \
		packaging/slowest-tests.sh target/nextest/default/junit.xml; \
		exit $$passed; \
	else \
		echo "cargo-nextest is not installed: no JUnit file, and no list of the slowest tests"; \
		$(CARGO) test $(LOCKED) --workspace; \
	fi

.PHONY: model
model: ## Checks the model of several brokers within wider bounds than `make test` does. Takes some minutes.
	@$(CARGO) test $(LOCKED) --package postern-model --test holds -- --ignored

# The workspace's own crates as they are released, on the dependencies of the tests: only those crates compile again.
AS_RELEASED := CARGO_PROFILE_DEV_OPT_LEVEL=3 CARGO_PROFILE_DEV_DEBUG_ASSERTIONS=false CARGO_PROFILE_DEV_OVERFLOW_CHECKS=false

.PHONY: bench
bench: install-deps ## Measures, each thing beside its bare cost. Wants a machine that does nothing else.
	@$(AS_RELEASED) $(CARGO) build $(LOCKED) --workspace --bins
	@$(AS_RELEASED) $(CARGO) bench $(LOCKED) --profile dev --workspace --bench postern

.PHONY: build
build: ## Builds every program, as the scenarios start them.
	@$(CARGO) build $(LOCKED) --workspace --bins

# The judge of the dependencies: exactly this version, so that a new release does not change what passes.
CARGO_DENY := 0.20.2

.PHONY: check
check: ## Formatting, lints, documentation, the rules of the house, and what the dependencies are allowed to be.
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(LOCKED) --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D rustdoc::broken_intra_doc_links -A rustdoc::private_intra_doc_links -A rustdoc::invalid_html_tags" $(CARGO) doc $(LOCKED) --workspace --no-deps --document-private-items --quiet
	$(CARGO) run $(LOCKED) --quiet --bin postern-house
	@if [ "$$($(CARGO) deny --version 2>/dev/null)" != "cargo-deny $(CARGO_DENY)" ]; then \
		$(CARGO) install --quiet --locked --version $(CARGO_DENY) cargo-deny; \
	fi
	$(CARGO) deny --locked check bans licenses sources
	@if $(CARGO) deny fetch db >/dev/null 2>&1; then \
		$(CARGO) deny --locked check advisories; \
	else \
		echo "check: advisories were NOT checked: the advisory database cannot be fetched from here"; \
	fi

.PHONY: packages
packages: ## Builds .deb, .rpm and an OCI image into target/packages, and lints them. Takes a quarter of an hour.
	@packaging/packages.sh

.PHONY: packages-reproduce
packages-reproduce: ## Builds the packages again from another folder, and compares the bytes.
	@packaging/packages.sh reproduce

# Program that must be there for `make test-system`, and the Debian package that has it.
SYSTEM_NEEDS := debootstrap:debootstrap systemd-nspawn:systemd-container ip:iproute2 nsenter:util-linux ssh:openssh-client dpkg-deb:dpkg python3:python3

.PHONY: test-system
test-system: ## Installs the packages of `make packages` on machines with systemd, and uses, restarts, upgrades, removes and purges them. As root.
	@missing=(); \
	for need in $(SYSTEM_NEEDS); do command -v "$${need%%:*}" >/dev/null || missing+=("$${need##*:}"); done; \
	if [ "$${#missing[@]}" -gt 0 ]; then \
		echo "installing $${missing[*]}"; \
		apt-get update -qq; \
		DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$${missing[@]}" >/dev/null; \
	fi
	@/usr/bin/python3 tests/system/test_packages.py

# EC2 for tests: a moto server of exactly these versions, in an environment of its own.
MOTO := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/postern-moto-5.2.5

# Program or file that must be there, and the Debian package that has it.
NEEDS := redis-server:redis-server lowdown:lowdown openssl:openssl nft:nftables ip:iproute2 setpriv:util-linux systemd-analyze:systemd

.PHONY: install-deps
install-deps: ## Installs what the tests and the demo need, on Debian, as root. Quick where it is there.
	@missing=(); \
	for need in $(NEEDS); do command -v "$${need%%:*}" >/dev/null || missing+=("$${need##*:}"); done; \
	compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null || missing+=(libfaketime); \
	/usr/bin/python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv); \
	if [ "$${#missing[@]}" -gt 0 ]; then \
		echo "installing $${missing[*]}"; \
		export DEBIAN_FRONTEND=noninteractive; \
		apt-get update -qq; \
		apt-get install -qq -y --no-install-recommends "$${missing[@]}" >/dev/null; \
	fi
	@if ! cmp --silent tests/moto-requirements.txt "$(MOTO)/installed"; then \
		echo "installing moto"; \
		rm -rf "$(MOTO)"; \
		/usr/bin/python3 -m venv "$(MOTO)"; \
		"$(MOTO)/bin/pip" install --quiet --disable-pip-version-check --requirement tests/moto-requirements.txt; \
		cp tests/moto-requirements.txt "$(MOTO)/installed"; \
	fi

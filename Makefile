# Every target installs what it needs: a fresh Debian 12 machine needs only `make` and `git`.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PYTHONUNBUFFERED := 1
# The fixed seed of random examples, so that a run of CI can be reproduced.
SEED ?= 20261121
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' pyproxy/__init__.py)
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest -p no:cacheprovider

.PHONY: help install dist release image checksums demo demo-shell lint test test-cluster test-e2e test-guest bench test-long lock clean

help: ## Show this list
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(VENV)/installed ## Install .venv/bin/pyproxy

dist: dist/.made ## Build a wheel, and an archive and a Debian package that install without a package index

release: $(VENV)/installed ## Build all files of a release in dist/release, the image with BASE=debian@sha256:...
	packaging/release.sh $(BIN)/python

# Archives have the kernel's names of architectures.
IMAGE_MACHINE := $(or $(patsubst amd64,x86_64,$(patsubst arm64,aarch64,$(ARCHITECTURE))),$(shell uname -m))
image: $(VENV)/apt ## Build the container image with buildah, as an archive in dist (ARCHITECTURE=arm64 needs qemu-user)
	@mkdir -p dist
	packaging/image.sh localhost/pyproxy:$(VERSION) dist/pyproxy-$(VERSION)-image-$(IMAGE_MACHINE).tar

checksums: ## Write SHA256SUMS of the files in dist/release
	cd dist/release && rm -f SHA256SUMS && sha256sum -- * >.SHA256SUMS && mv .SHA256SUMS SHA256SUMS

demo: $(VENV)/tested ## Send real packets through every kind of Service, in network namespaces
	$(BIN)/python -m tests.demo

kind: $(VENV)/installed ## Create a kind cluster with pyproxy in place of kube-proxy (needs docker or podman)
	@command -v kind >/dev/null || tests/install/tools.sh kind
	@command -v kubectl >/dev/null || tests/cluster/build.sh
	PATH="$$PATH:$(CURDIR)/.cache/install-tools:$(CURDIR)/.cache/bin" packaging/kind.sh

demo-shell: $(VENV)/tested ## Run the demo, then open a prompt in the client
	$(BIN)/python -m tests.demo --shell

lint: $(VENV)/tested ## Check style, types, import contracts and docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/docs/cli_page.py --check
	$(BIN)/python -m tests.docs.check
	$(BIN)/python -m tests.docs.words
	$(BIN)/mkdocs build --strict --quiet

# The guest supports every mode but is slow: it runs the most important packet suites in IPVS mode, and tests that need its kernel.
GUEST_TESTS := $(addprefix tests/packets/test_,cluster_ips.py external_addresses.py affinity.py flows.py spread.py explain.py explained_packets.py) \
	$(addprefix tests/packets/test_flags.py::test_node_ports_answer_on_,ipv4_localhost_by_name ipv6_localhost_by_name) \
	tests/packets/test_ipvs_requirements.py tests/packets/test_mode_switch.py tests/properties/test_ipvs.py \
	tests/packets/test_drift.py::test_deleted_rules \
	tests/guest/test_drain.py tests/guest/test_foreign_objects.py
SCTP_TESTS := tests/packets/test_cluster_ips.py tests/packets/test_external_addresses.py -k sctp
WITHOUT_IPVS := env MODES=iptables-legacy,iptables-nft,nftables

test: $(VENV)/tested ## Run pure tests, the command line, and packet tests on this kernel and in a guest with IPVS
	$(PYTEST) tests/unit tests/cli tests/docs tests/golden tests/properties tests/fuzz tests/packets --hypothesis-seed=$(SEED)
	$(BIN)/python -m tests.guest $(PYTEST) $(GUEST_TESTS) --hypothesis-seed=$(SEED)
	$(BIN)/python -m tests.guest $(WITHOUT_IPVS) $(PYTEST) $(SCTP_TESTS)

test-guest: $(VENV)/tested ## Run all tests of the IPVS mode, and tests that need the guest's kernel
	$(BIN)/python -m tests.guest --seconds 2400 $(PYTEST) $(GUEST_TESTS) tests/packets/test_flags.py \
		tests/packets/test_node.py tests/packets/test_node_changes.py tests/packets/test_health.py \
		tests/packets/test_restart.py tests/packets/test_drift.py tests/packets/test_demo.py::test_everything_passes \
		tests/packets/test_upgrade.py tests/packets/test_random_walk.py tests/packets/test_spoofing.py \
		tests/guest
	$(BIN)/python -m tests.guest --seconds 1200 env MODES=ipvs-nft $(PYTEST) tests/packets/test_cluster_ips.py \
		tests/packets/test_external_addresses.py tests/packets/test_restart.py
	$(BIN)/python -m tests.guest --seconds 1200 $(WITHOUT_IPVS) $(PYTEST) tests/packets/test_cluster_ips.py \
		tests/packets/test_affinity.py

test-cluster: $(VENV)/tested peers ## Test against the real API server and the real kube-proxy
	$(PYTEST) tests/cluster tests/install --hypothesis-seed=$(SEED)
	$(BIN)/python -m tests.guest --seconds 1200 $(PYTEST) tests/cluster/test_peer_ipvs.py --hypothesis-seed=$(SEED)
	$(BIN)/python -m tests.guest --seconds 1800 $(PYTEST) tests/cluster/test_takeover_ipvs.py

MODES ?= iptables iptables-legacy nftables
test-e2e: $(VENV)/tested $(VENV)/apt-e2e peers ## Run Kubernetes' own network tests on three real nodes, in each of MODES
	tests/install/debian.sh
	$(BIN)/python -m tests.e2e --modes "$(MODES)" $(E2E)

BENCH ?= normal
bench: $(VENV)/tested peers ## Measure pyproxy next to kube-proxy, for hours: BENCH=small or full, BENCH_SIZES, BENCH_MODES, REPEATS, BENCH_FLAGS
	$(BIN)/python -m tests.bench --scope $(BENCH) $(if $(BENCH_SIZES),--sizes $(BENCH_SIZES)) \
		$(if $(BENCH_MODES),--modes $(BENCH_MODES)) $(if $(REPEATS),--repeats $(REPEATS)) $(BENCH_FLAGS)
	$(BIN)/python -m tests.bench.relay

test-long: $(VENV)/tested peers ## Run all tests with many more examples and a random seed
	$(PYTEST) tests --long
	$(BIN)/python -m tests.guest --seconds 7200 $(PYTEST) tests/properties/test_ipvs.py tests/cluster/test_peer_ipvs.py \
		tests/packets/test_explained_packets.py tests/packets/test_random_walk.py --long
	$(BIN)/python -m tests.guest --seconds 7200 $(PYTEST) tests/packets/test_killed.py tests/packets/test_soak.py --long

# -- setup -------------------------------------------------------------------------------------------------

$(VENV)/apt: tests/apt-packages
	@mkdir -p $(VENV)
	tests/install-packages
	@touch $@

$(VENV)/apt-e2e: tests/e2e/apt-packages
	tests/install-packages $<
	@touch $@

$(VENV)/installed: $(VENV)/apt requirements-build.lock requirements.lock pyproject.toml
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@# The build tools first and from a lock file: python-iptables is built from source, without fetching unlocked packages.
	$(PIP) --require-hashes -r requirements-build.lock
	$(PIP) --require-hashes --no-build-isolation -r requirements.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/tested: $(VENV)/installed tests/requirements.lock
	$(PIP) --require-hashes -r tests/requirements.lock
	@touch $@

# Files of the archive.
DISTRIBUTED := $(shell find pyproxy systemd packaging -name __pycache__ -prune -o -type f -print)

dist/.made: $(VENV)/installed $(DISTRIBUTED) pyproject.toml LICENSE
	packaging/dist.sh $(BIN)/python
	@touch $@

.PHONY: peers
peers: $(VENV)/tested
	tests/cluster/build.sh

LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--custom-compile-command "make lock"

lock: $(VENV)/tested ## Resolve the dependencies and write the lock files
	$(LOCK) --upgrade --extra iptc pyproject.toml -o requirements.lock
	$(LOCK) --group pyproject.toml:build -o requirements-build.lock
	$(LOCK) --extra iptc pyproject.toml --group dev --constraint requirements.lock -o tests/requirements.lock
	$(LOCK) --group pyproject.toml:go -o tests/cluster/go.lock

clean: ## Remove everything that the targets created
	rm -rf $(VENV) .cache build dist *.egg-info

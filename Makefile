# One command each, on Debian 12 or Ubuntu, as root. `make` alone says what there is.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-vm test-vagrant nova compat bench lint clean

PYTHON := .venv/bin/python
CLIENTS := curl wget busybox cloud-init cloud-guest-utils awscli facter ohai ansible-core libwww-perl ruby
DATAPATH ?= ebpf
TESTS ?= tests

help: ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 8

setup: ## install what is missing: Debian packages, and a virtual environment in .venv
	@./setup.sh

demo: ## two guests with one address, each with its own metadata; shuts one off (DATAPATH=ebpf or nft)
	@if [ "$$(id -u)" != 0 ]; then echo "make demo: run it as root: it makes network namespaces" >&2; exit 1; fi
	@./setup.sh curl
	@$(PYTHON) -m demo.run --datapath $(DATAPATH)

test: ## every test tier (TESTS=tests/unit for some of them)
	@./setup.sh $(CLIENTS) haproxy nginx openssl openvswitch-switch python3-openvswitch \
		libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients python3-libvirt qemu-system-x86
	@tests/nova/install.sh || echo "make test: without the real Nova: its tests cannot run" >&2
	@tests/clients/install.sh >/dev/null || echo "make test: without PyPI's and npm's clients: their tests fail" >&2
	@if [ "$$(id -u)" != 0 ]; then echo "make test: not root: the kernel tiers will be skipped" >&2; fi
	@# File by file, side by side, as each makes a hypervisor of its own. Real guests have targets of their own.
	@if [ "$(TESTS)" = tests ]; then \
		$(PYTHON) -m pytest -n auto --dist loadfile tests --ignore tests/vm --ignore tests/vagrant; \
	else $(PYTHON) -m pytest $(TESTS); fi

test-vm: ## real guests: QEMU machines on real taps, emulated where KVM is not to be had
	@if [ "$$(id -u)" != 0 ]; then echo "make test-vm: run it as root: it makes taps and namespaces" >&2; exit 1; fi
	@./setup.sh qemu-system-x86 mmdebstrap e2fsprogs openssh-client
	@$(PYTHON) -m pytest --durations 20 tests/vm

test-vagrant: ## whole hypervisors: two virtual machines with metashim installed, the tests inside (vagrant/README.md)
	@if [ "$$(id -u)" != 0 ]; then echo "make test-vagrant: run it as root: it makes taps and namespaces" >&2; exit 1; fi
	@./setup.sh vagrant vagrant-libvirt libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86 \
		qemu-utils dnsmasq-base mmdebstrap e2fsprogs rsync openssh-client
	@vagrant/run

nova: ## the real Nova, which some tests forward to: a virtual environment in .venv-nova (part of `make test`)
	@./setup.sh
	@tests/nova/install.sh

compat: ## try the clients that guests run, and write README's table of what came of it
	@./setup.sh $(CLIENTS)
	@tests/nova/install.sh
	@tests/clients/install.sh >/dev/null
	@$(PYTHON) -m pytest tests/clients/test_compatibility.py -k "not the_table" --timeout 600
	@$(PYTHON) -m tests.clients.compat

bench: ## what it costs, against peers: a table, and bench/result.json
	@./setup.sh haproxy wrk
	@$(PYTHON) -m bench

lint: ## ruff and mypy
	@./setup.sh
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m mypy

clean: ## remove what these commands made in the tree, both virtual environments included, and the clients kept outside of it
	@rm -rf .venv .venv-nova .pytest_cache .ruff_cache .mypy_cache .hypothesis build *.egg-info bench/result.json \
		"$${METASHIM_CACHE:-/var/cache/metashim}"/clients-*
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# gpuckpt: `make bench` measures this machine, `make test` runs all that CI runs. `make help` lists the rest.
SHELL := /bin/sh
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

setup_inputs = requirements/setup.sh requirements/fetch_collections.py requirements.yml pyproject.toml

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(VENV)/.controller: requirements/controller.txt requirements/collections.txt $(setup_inputs)
	@requirements/setup.sh controller
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.controller
	@requirements/setup.sh dev
	@touch $@

.PHONY: setup setup-dev
setup: $(VENV)/.controller ## virtual environment and collections of the controller
setup-dev: $(VENV)/.dev ## the same with linters and test tools

.PHONY: bench
bench: setup ## provision this machine, benchmark it, write the report
	@gpuckpt provision bench $(ARGS)

.PHONY: deps sources
deps: ## system packages that the checks use (apt)
	@.ci/deps.sh
sources: deps ## CRIU's release tarball, for the native tests
	@.ci/sources.sh

.PHONY: test test-long lint test-unit test-native test-integration test-molecule
test: sources setup-dev ## all that CI runs
	@.ci/checks.py
test-long: sources setup-dev ## the same with the combinations that CI leaves out
	@.ci/checks.py --long
lint: setup-dev ## every linter
	@.ci/checks.py lint
test-unit: setup-dev ## modules, filters, schema, statistics
	@.ci/checks.py unit
test-native: sources setup-dev ## CRIU and the CUDA plugin, patched and stock
	@.ci/checks.py native
test-integration: sources setup-dev ## real provisioning and benchmarks on nodes of their own
	@.ci/checks.py integration
test-molecule: sources setup-dev ## every scenario of every role
	@.ci/checks.py node molecule

.PHONY: test-faults
test-faults: deps setup-dev ## kills, damage and full stores on a node of its own (ARGS: see docs/faults.md)
	@tests/integration/own_node.sh build/node 'ansible-playbook provision.yml -e gpuckpt_weights_mib=64 -e inference_server_port=18079' tests/faults/run.py $(ARGS)

.PHONY: test-vm
test-vm: setup-dev ## serving under systemd on an emulated virtual machine, half an hour; root and qemu-system-x86
	@$(BIN)/python -m pytest -p no:xdist -m vm tests/vm

.PHONY: fuzz
SECONDS ?= 600
SEED ?= $(shell date +%s)
fuzz: setup-dev ## the parsers of foreign data, for long (SECONDS=600 SEED=…)
	@$(BIN)/python tests/fuzz/run.py --seconds $(SECONDS) --seed $(SEED)

.PHONY: format roles-docs readme-table lock clean
format: setup-dev ## format Python and C
	@ruff format --quiet . && ruff check --quiet --fix .
	@git ls-files 'native/*.c' 'native/*.h' 'tests/native/*.c' | xargs --no-run-if-empty clang-format --style=file:native/.clang-format -i
roles-docs: setup-dev ## README of each role, from its argument_specs
	@.ci/role_readmes.py
readme-table: setup ## tables of README and docs/results.md, from reports/published
	@gpuckpt readme-table
lock: setup-dev ## newer pins into requirements/*.txt
	@requirements/lock.sh
clean: ## what the checks left; the virtual environment stays
	@rm -rf build .ruff_cache .mypy_cache .pytest_cache .ansible/tmp
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

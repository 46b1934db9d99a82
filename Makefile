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

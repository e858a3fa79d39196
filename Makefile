# `make run` and `make test` each do all set-up they need; nothing has to be installed before.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
  if command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(not ((3, 11) <= sys.version_info[:2] < (3, 14)))' >/dev/null 2>&1; \
  then echo $$p; break; fi; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PROCESSES ?= 3
# Hundreds of short-lived programs run here: without bytecode each would compile the package again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup run test check fmt lint type imports docs bench clean

help: ## List the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11, 3.12 or 3.13 found"; echo; echo "hint: install one, or name it with make PYTHON=/path/to/python"; exit 2; }
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --quiet --upgrade 'pip>=25.1'

$(VENV)/.run-ready: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Setting up (once, a minute or two) …"
	@$(PIP) install --quiet -c constraints.txt -e '.[all]'
	@touch $@

$(VENV)/.dev-ready: pyproject.toml constraints.txt $(VENV)/.run-ready
	@echo "Setting up the tools for tests and checks (once) …"
	@$(PIP) install --quiet -c constraints.txt --group dev
	@touch $@

setup: $(VENV)/.dev-ready ## Install everything for development into .venv

run: $(VENV)/.run-ready ## Main job: train on digits, plan, optimise, serve, canary, watch
	@$(BIN)/fairlead demo run

test: $(VENV)/.dev-ready ## Run the tests
	@$(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile -m "not alone"
	@$(BIN)/python -m pytest -m alone

check: lint type imports docs ## Lint, types, import contracts, docs

fmt: $(VENV)/.dev-ready ## Format the code
	@$(BIN)/ruff check --fix --quiet src tests examples benchmarks || true
	@$(BIN)/ruff format src tests examples benchmarks

lint: $(VENV)/.dev-ready ## Lint and check the format
	@$(BIN)/ruff check src tests examples benchmarks
	@$(BIN)/ruff format --check --quiet src tests examples benchmarks

type: $(VENV)/.dev-ready ## Check types, strictly
	@$(BIN)/mypy

imports: $(VENV)/.dev-ready ## Check the import contracts of the house
	@$(BIN)/lint-imports --no-cache

docs: $(VENV)/.dev-ready ## Check that generated reference pages are up to date
	@$(BIN)/python docs/generate.py --check

bench: $(VENV)/.dev-ready ## Run every benchmark and print its table
	@for f in benchmarks/*/*.py; do echo "== $$f"; $(BIN)/python $$f || exit 1; done

clean: ## Remove what the other targets made
	@rm -rf $(VENV) .fairlead demo .mypy_cache .ruff_cache .pytest_cache .hypothesis

# Every command works straight after `git clone`: the first one that needs Python makes the
# virtual environment and installs the versions of constraints.txt into it.
#
#   PYTHON   interpreter to make the environment with; default: the first suitable one on the PATH
#   VENV     where the environment lives; default: .venv

PYTHON ?=
VENV ?= .venv
SHELL := /bin/sh

BIN := $(VENV)/bin
RUNTIME := $(VENV)/.installed-runtime
DEV := $(VENV)/.installed-dev
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
# Checks infra/terraform. It needs other versions than ours, so it has an environment of its own.
CHECKOV_VERSION := 3.2.533
CHECKOV := $(VENV)/checkov/.installed-$(CHECKOV_VERSION)
# Keras's other backend, and what the notebook draws with. TensorFlow and Keras import either where they find it, which
# would cost each process 0.6 s, so they have folders of their own.
JAX := $(VENV)/jax/.installed
MATPLOTLIB := $(VENV)/matplotlib/.installed

# Bytecode, which hundreds of processes would each make for themselves where PYTHONDONTWRITEBYTECODE is set.
COMPILE := $(BIN)/python -m compileall -q masks trainer pipelines

CANDIDATES := $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.10)
SUITABLE := import sys; v = sys.version_info[:2]; \
	(3, 10) <= v <= (3, 13) or sys.exit("is Python %d.%d" % v); \
	import ensurepip, ssl, venv

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test soak engines bench images lint clean

help: ## list these commands
	@awk -F ': .*## ' '/^[a-z]+: .*## / { printf "  make %-7s %s\n", $$1, $$2 }' Makefile

demo: $(RUNTIME) ## train a small network on bundled photographs and write demo/report/report.html
	@$(BIN)/python -m pipelines.demo --output demo

test: $(DEV) $(CHECKOV) $(JAX) $(MATPLOTLIB) ## run the tests
	@$(COMPILE)
	@$(BIN)/python -m pytest -q -rs --numprocesses 3 --dist loadfile --no-loadscope-reorder tests

soak: $(DEV) $(CHECKOV) $(JAX) $(MATPLOTLIB) ## run the same tests with far bigger counts (hours)
	@$(BIN)/python -m pytest -q --soak --timeout 7200 tests

engines: $(DEV) ## run the tests of tests/engines on real engines, which it brings into .engines/
	@$(BIN)/python tests/engines/tools.py
	@$(BIN)/python -m pytest -q --timeout 1800 tests/engines

bench: $(DEV) ## run the benchmarks of tests/benchmarks, one after another
	@for file in tests/benchmarks/[!_]*.py; do \
		test -e "$$file" || { echo "tests/benchmarks: expected benchmark modules. Received none."; exit 1; }; \
		echo "== $$file"; $(BIN)/python "$$file" || exit 1; \
	done

images: ## build the container images; REPOSITORY=... TAG=... name them, PUSH=yes pushes them, GPU=yes adds beam-gpu
	@TAG="$(TAG)" REPOSITORY="$(REPOSITORY)" PUSH="$(PUSH)" GPU="$(GPU)" sh docker/build.sh

lint: $(DEV) ## check style, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

clean: ## remove demo/, build folders and caches; the environment stays
	rm -rf demo build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find masks trainer pipelines tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps make a second `make` start at once; a change of either file installs again.
$(RUNTIME): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV) (a few minutes the first time)"
	@$(PIP) install -c constraints.txt -e ".[dataflow,ray]"
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV) (a few minutes the first time)"
	@$(PIP) install -c constraints.txt -e ".[dataflow,ray,s3,dev]"
	@touch $(RUNTIME) $@

# Without it the test that uses it is skipped, and says so.
$(CHECKOV): | $(BIN)/python
	@echo "Installing checkov $(CHECKOV_VERSION) into $(VENV)/checkov"
	@$(BIN)/python -m venv --clear $(VENV)/checkov && \
	$(VENV)/checkov/bin/python -m pip --quiet --disable-pip-version-check install checkov==$(CHECKOV_VERSION) && \
	touch $@ || echo "checkov $(CHECKOV_VERSION) could not be installed: its test will be skipped" >&2

# The packages that they need and no other does.
$(JAX): PACKAGES := jax jaxlib
$(MATPLOTLIB): PACKAGES := matplotlib contourpy cycler fonttools kiwisolver
$(JAX) $(MATPLOTLIB): constraints.txt | $(DEV)
	@echo "Installing $(firstword $(PACKAGES)) into $(@D)"
	@$(PIP) install --upgrade --target $(@D) --no-deps -c constraints.txt $(PACKAGES) && touch $@

# A candidate counts only if it runs: version managers put names on the PATH that do not.
# An environment whose interpreter is gone is made anew.
$(BIN)/python:
	@found=; clear=; \
	for candidate in $(CANDIDATES); do \
		if ! command -v "$$candidate" >/dev/null 2>&1; then found="$$found, $$candidate (not there)"; continue; fi; \
		if said=$$("$$candidate" -c '$(SUITABLE)' 2>&1); then \
			test ! -f $(VENV)/pyvenv.cfg || clear=--clear; \
			exec "$$candidate" -m venv $$clear $(VENV); \
		fi; \
		said=$$(printf '%s\n' "$$said" | sed -n '/^Traceback/d; /^ /d; /./{p;q;}'); \
		found="$$found, $$candidate ($$said)"; \
	done; \
	echo "PYTHON: expected an interpreter of Python 3.10 to 3.13 with venv and ensurepip. Received $${found#, }." >&2; \
	exit 1

# Every target sets itself up on a fresh machine: Python 3.10 or newer, make and pip are all that is needed.
#
#   make smoke    train a small BLOOM on 4 processes of this machine, stop, resume, export, prove the export
#   make test     run all tests
#   make check    lint, types, import contracts
#   make compatibility   exported models, tokenizers and published branches in an older transformers, in an environment
#                        of its own
#   make lowest   the tests on the oldest releases of the dependencies that are allowed, in .venv-lowest
#
# Variables:
#   PYTHON=python3.12        the interpreter that .venv is made from
#   TORCH=torch==2.13.0      which torch; installed first, so that nothing else brings another build of it.
#                            TORCH= (empty) takes the torch that PYTHON already has, as in a ROCm or CUDA container
#   TORCH_INDEX=URL          a package index to look for it in besides the usual one
#   WORKERS=0                how many tests run at a time; 0 runs them in one process, for a debugger
#   PYTEST="-k resume"       options for pytest

PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
WORKERS ?= 2

VENV ?= .venv
PY := $(VENV)/bin/python
READY := $(VENV)/ready
LOG := $(VENV)/setup.log

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: smoke test check compatibility lowest setup clean
MAKEFLAGS += --no-print-directory

# $(call phase,what it is,command): one line; the command's output only if it fails.
phase = echo "$(1)"; { $(2); } >>$(LOG) 2>&1 || { tail -n 40 $(LOG); echo "make: '$(1)' failed; all of its output: $(LOG)"; exit 1; }

smoke: $(READY)
	@$(PY) -m launch.smoke --fresh

test: $(READY)
	@$(PY) -m pytest -n $(WORKERS) --dist loadgroup $(PYTEST)

check: $(READY)
	@echo "lint"; $(VENV)/bin/ruff check --quiet .
	@echo "format"; $(VENV)/bin/ruff format --quiet --check .
	@echo "types"; $(VENV)/bin/mypy --no-error-summary
	@echo "import contracts"; report=$$($(VENV)/bin/lint-imports --no-cache 2>&1) || { echo "$$report"; exit 1; }

compatibility: $(READY)
	@$(PY) -m tests.compatibility.tokenizer
	@$(PY) -m tests.compatibility.model
	@$(PY) -m tests.compatibility.published

# DualPipeV needs a newer DeepSpeed than the lowest one
lowest:
	@mkdir -p .venv-lowest; : >.venv-lowest/setup.log
	@$(MAKE) setup VENV=.venv-lowest CONSTRAINTS='--constraint tests/lowest.txt'
	@.venv-lowest/bin/python -m pytest -n $(WORKERS) --dist loadgroup -k "not dual"

setup: $(READY)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "make: Python 3.10 or newer is needed, $(PYTHON) says: $$({ $(PYTHON) --version 2>&1 || true; } | head -n 1). Name another: make $(or $(MAKECMDGOALS),smoke) PYTHON=python3.12"; exit 1; }
	@mkdir -p $(VENV); : >$(LOG)
	@$(call phase,setup: virtual environment in $(VENV),$(if $(TORCH),$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(PY) install --quiet pip; },$(PYTHON) -m venv --system-site-packages $(VENV)))
	@$(if $(TORCH),$(call phase,setup: $(TORCH),$(PY) -m pip install --quiet $(if $(TORCH_INDEX),--extra-index-url '$(TORCH_INDEX)') '$(TORCH)'),$(call phase,setup: torch of $(PYTHON),$(PY) -c 'import torch'))
	@$(call phase,setup: dependencies (a few minutes the first time),$(PY) -m pip install --quiet $(CONSTRAINTS) --editable '.[dev]')
	@touch $@

clean:
	@rm -rf $(VENV) work/smoke dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Two commands do everything from a clean clone, with Python >= 3.11 and pip alone:
#   make quickstart     real sound in, a searchable and exported model out
#   make test           all checks and tests
# Both make the virtual environment .venv once, and again only after pyproject.toml has changed.

PYTHON ?= python3
VENV ?= .venv
# Data set of the quickstart: tiny (3 minutes), default, plus, or portable (no apt needed).
TIER ?= default
# A folder of packages fetched before, for machines without a network.
PACKAGES ?=
# More arguments for `alm quickstart`.
ARGS ?=
# What pip installs with the project; add `cuda` or `tpu` for JAX on an accelerator.
EXTRAS ?= torch,hf,onnx,app,import,dev
# PyTorch only checks and runs the exported model, so a CPU build is enough. On Linux the plain
# release is the CUDA build, several GB; to get the CPU one, name PyTorch's CPU index to pip itself,
# once: `pip config set global.extra-index-url URL`, or PIP_EXTRA_INDEX_URL in the environment. The
# version there is 2.13.0+cpu, which pip prefers. `make TORCH=torch==X` takes another release.
TORCH ?= torch==2.13.0

PY := $(VENV)/bin/python
# Tests compile much and compute little, each on one core, so two of them at a time take little more
# than half as long. A file stays in one process: its tests share what they compile.
PROCESSES := --numprocesses=2 --dist=loadfile
# What needs transformers or onnx, which ask for newer versions of others than alm_jax does, and what
# needs the libraries of the extra `dev`.
NEWEST := tests/test_docs.py tests/evaluators/test_caption_sets.py tests/interop/test_huggingface_vit.py tests/interop/test_onnx_export.py \
  tests/input_pipeline/test_json_tokenizer.py tests/parity/test_clap_transformers.py
INSTALLED := $(VENV)/.installed
LOWER_VENV := $(VENV)-lower

# Huge pages: without them a third of a training step on the CPU goes into page faults.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

# Tests compare against numbers computed on the CPU; quickstart takes whatever JAX finds.
test test-fast test-lower-bounds: export JAX_PLATFORMS ?= cpu

.DEFAULT_GOAL := help
.PHONY: help quickstart ablation benchmarks test test-fast test-lower-bounds plans lint format install clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-19s %s\n", $$1, $$2}' Makefile

quickstart: $(INSTALLED) ## data, two training stages, evaluation, export and report [TIER=tiny]
	@echo "==> Quickstart, tier $(TIER)"
	@$(PY) -m alm_jax quickstart --tier=$(TIER) $(if $(PACKAGES),--packages='$(PACKAGES)') $(ARGS)

ablation: $(INSTALLED) ## with and without stage 1, captioning and masking, on the quickstart's data
	@$(PY) -m alm_jax ablation $(ARGS)

test: lint ## everything: formatting, lint, types, all tests
	@echo "==> Tests"
	@$(PY) -m pytest -q $(PROCESSES)

test-fast: $(INSTALLED) ## the tests that are not marked slow
	@$(PY) -m pytest -q $(PROCESSES) -m "not slow"

plans: $(INSTALLED) ## plan the full-size configs for TPUs, compare with tests/golden/plans [ARGS=--update]
	@echo "==> The TPU compiler (700 MB), and half a minute for each config"
	@$(PY) -m pip install -q -e '.[tpu]'
	@$(PY) -m tests.perf.golden_plans $(ARGS)

lint: $(INSTALLED) ## ruff and mypy
	@echo "==> Formatting, lint, types"
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy

format: $(INSTALLED) ## rewrite the files as ruff wants them
	@$(VENV)/bin/ruff format .
	@$(VENV)/bin/ruff check --fix .

test-lower-bounds: $(LOWER_VENV)/.installed ## the fast tests with the oldest versions pyproject admits
	@echo "==> Tests with the oldest admitted versions"
	@$(LOWER_VENV)/bin/python -m pytest -q -m "not slow" $(NEWEST:%=--ignore=%)

benchmarks: $(INSTALLED) ## speed beside PyTorch, tens of minutes on two cores [ARGS="training --output=FILE"]
	@$(PY) -m pip install -q -e '.[bench]'
	@$(PY) -m tests.benchmarks $(ARGS)

install: $(INSTALLED) ## only the virtual environment

$(INSTALLED): pyproject.toml | $(PY)
	@echo "==> Installing $(TORCH) (about 200 MB as a CPU build; the Makefile tells how to get one)"
	@$(PY) -m pip install -q '$(TORCH)'
	@echo "==> Installing alm_jax[$(EXTRAS)] and what it needs (about 750 MB, one to three minutes)"
	@$(PY) -m pip install -q -e '.[$(EXTRAS)]'
	@touch $@

# Debian keeps ensurepip in the package python3-venv; where that is missing, pip can do its work.
$(VENV)/bin/python $(LOWER_VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "alm_jax needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@folder=$(@:/bin/python=); echo "==> Creating the virtual environment $$folder"; \
	if $(PYTHON) -c 'import ensurepip; ensurepip.version()' 2>/dev/null; then \
	  $(PYTHON) -m venv $$folder; \
	else \
	  $(PYTHON) -m venv --without-pip $$folder && $(PYTHON) -m pip -q --python $@ install pip; \
	fi || { rm -rf $$folder; \
	  echo "No virtual environment: install venv (on Debian: apt install python3-venv)" >&2; exit 1; }

$(LOWER_VENV)/.installed: pyproject.toml tests/lower_bounds.py | $(LOWER_VENV)/bin/python
	@echo "==> Installing the oldest versions that pyproject.toml admits"
	@$(PYTHON) tests/lower_bounds.py > $(LOWER_VENV)/constraints.txt
	@$(LOWER_VENV)/bin/python -m pip install -q -c $(LOWER_VENV)/constraints.txt '$(TORCH)'
	@$(LOWER_VENV)/bin/python -m pip install -q -c $(LOWER_VENV)/constraints.txt -e '.[torch,app,import,dev]'
	@touch $@

clean: ## remove environments and caches; data/ and runs/ stay
	rm -rf $(VENV) $(LOWER_VENV) .cache .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -not -path './data/*' -prune -exec rm -rf {} +

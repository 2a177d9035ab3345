# Each target sets up what it needs: .venv is made when it is missing.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed
# Parallel test workers take one thread each: two torch threads on a busy core are several times slower than one.
FAULTS := .pytest_cache/faults.xml
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

.PHONY: help install run test test-all test-faults parity lint bench docs clean

help:  ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $(READY)

install: $(READY)  ## make .venv with everything in it

run: $(READY)  ## the main job: DGL on VGG-16, embedded data, no account, no download
	$(BIN)/python -m locallearn strategy=dgl model=vgg16

test: $(READY)  ## the tests, without the long ones
	$(TEST) -m "not slow"

test-all: test-faults  ## all tests
	$(TEST) -m "not fault"

test-faults: $(READY)  ## inject every fault, and write the tables of docs/reliability.md
	$(TEST) -m fault --junitxml $(FAULTS); status=$$?; $(BIN)/python scripts/reliability.py $(FAULTS) && exit $$status

parity: $(READY)  ## hold ours beside what the code of the papers does, and write the table of docs/parity.md
	OMP_NUM_THREADS=1 $(BIN)/python scripts/parity.py

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)  ## measure every goal: overhead, memory, pipelines, data, start, trackers; some 45 minutes on two idle cores
	$(BIN)/python scripts/benchmark.py --json docs/benchmark.json --markdown docs/benchmark.md

docs: $(READY)  ## the pages of docs/ as a site that opens from disk: build/site/index.html
	$(BIN)/mkdocs build --strict --quiet

clean:  ## remove .venv and caches; run folders stay
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

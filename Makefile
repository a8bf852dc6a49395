# make demo: train, load, sample (a few minutes on 2 CPU cores).   make test: the whole suite, offline.
PYTHON ?= python3
BIN := .venv/bin
SHELL := /bin/bash

.PHONY: demo test lint benchmark clean

.venv/installed: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test,demo]'
	touch $@

demo: .venv/installed
	$(BIN)/python examples/demo.py --output_dir outputs/demo

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

benchmark: .venv/installed
	$(BIN)/python examples/benchmark.py --check

clean:
	rm -rf .venv outputs

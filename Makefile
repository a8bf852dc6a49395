# make demo: train, load, sample (a few minutes on 2 CPU cores).   make test: the whole suite, offline.
# make cifar10-64, make cifar10-128: train on CIFAR-10, evaluate, write docs/results.md; a GPU is assumed.
# make cifar10-64 FLAGS="--minutes 9" stops after so long, and the same command goes on.
PYTHON ?= python3
BIN := .venv/bin
SHELL := /bin/bash
FLAGS ?= --mixed_precision bf16 --compile

.PHONY: demo test lint benchmark cifar10-64 cifar10-128 clean

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

cifar10-64 cifar10-128: .venv/installed
	$(BIN)/python examples/cifar10.py --recipe $@ $(FLAGS)

clean:
	rm -rf .venv outputs

# make demo: train, load, sample (a few minutes on 2 CPU cores).   make test: the suite, offline; make test-all: its nine slowest too.
# make app: a page to look with, at 127.0.0.1.   make test-browser: its tests in a real Chromium.
# make cifar10-64, make cifar10-128: train on CIFAR-10, evaluate, write outputs/*/report.md; a GPU is assumed.
# make celebahq-256: the same on CelebA-HQ at 256 pixels, 500,000 steps of 64 images, into outputs/celebahq-256.
# make rehearsal-256 PICTURES=/usr/share/wallpapers: its pieces at full size, on patches of any large pictures.
# make paper-tables: the DDIM paper's tables beside what is measured; FLAGS=--dry_run says what that takes.
# make cifar10-64 FLAGS="--minutes 9" stops training after so long, and the same command goes on.
# make cifar10-64 RUN="--mixed_precision bf16 --compile auto" is the recipe itself: 800,000 steps of 128 images.
PYTHON ?= python3
BIN := .venv/bin
SHELL := /bin/bash
FLAGS ?=
# Ten million images in large batches, the learning rate in proportion and down to zero at the end.
RUN := --mixed_precision bf16 --compile auto --batch_size 512 --learning_rate 8e-4 --lr_scheduler cosine --lr_warmup_steps 400 \
    --max_train_steps 20000 --dropout 0 --ema_decay 0.999 --samplers none --fast
# The published recipe; fewer and smaller cells of the table, as a sample is 64 times as large.
celebahq-256: RUN := --mixed_precision bf16 --compile auto --num_images 5000 --eta 0,1 --fast
PICTURES ?= /usr/share/wallpapers

.PHONY: demo app test test-all test-browser lint benchmark cifar10-64 cifar10-128 celebahq-256 rehearsal-256 paper-tables clean

.venv/installed: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test,demo]'
	touch $@

demo: .venv/installed
	$(BIN)/python examples/demo.py --output_dir outputs/demo

app: .venv/installed
	$(BIN)/python -m ddim_hf.app $(FLAGS)

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" tests

test-all: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests

test-browser: .venv/installed
	bash tests/app/install_browser.sh $(BIN)/pip
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/app/test_browser.py

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

benchmark: .venv/installed
	$(BIN)/python examples/benchmarks/benchmark.py --check

cifar10-64 cifar10-128 celebahq-256: .venv/installed
	$(BIN)/python examples/reproduce.py --recipe $@ $(RUN) $(FLAGS)

rehearsal-256: .venv/installed
	$(BIN)/python examples/rehearsal.py $(PICTURES) outputs/rehearsal-256 $(FLAGS)

paper-tables: .venv/installed
	$(BIN)/python examples/paper_tables.py $(FLAGS)

clean:
	rm -rf .venv outputs

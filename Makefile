# Two commands do everything on a fresh machine: `make demo` and `make test`. Both make .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test check fmt results train-step readme clean

setup: $(VENV)/.installed

# torch is pinned so that the CPU build comes, not gigabytes of CUDA; pyproject.toml keeps the range.
$(VENV)/.installed: pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/msn-deploy demo --out demo

test: check
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

fmt: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Measures again what the README shows, and fills it in; minutes, on an otherwise idle machine.
results: setup
	benchmarks/record.sh

# Step time and saved memory of each normalisation: a quarter of an hour on an otherwise idle machine.
train-step: setup
	$(BIN)/python benchmarks/peers/train_step.py --out train-step.json

readme: setup
	$(BIN)/python benchmarks/readme.py

clean:
	rm -rf $(VENV) demo dist

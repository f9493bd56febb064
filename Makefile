# `make demo` and `make test` set up everything they need.
PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python

.PHONY: setup demo test slow golden bench lint typecheck clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/seedvr2 demo --output-dir demo

test: setup
	$(RUN) -m pytest -m 'not slow'

slow: setup
	$(RUN) -m pytest -m slow

golden: setup
	$(RUN) -m pytest -m golden

bench: setup
	for file in tests/benchmarks/bench_*.py; do $(RUN) -m tests.benchmarks.$$(basename $$file .py) || exit 1; done

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: setup
	$(BIN)/mypy

clean:
	rm -rf .venv demo runs

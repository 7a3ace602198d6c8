# Every target makes .venv and installs what it needs; only python3 and make have to be there.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := pyproject.toml

.PHONY: demo test lint types bench docs clean

demo: .venv/.demo
	$(BIN)/adabet demo

test: .venv/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev
	$(BIN)/mypy

bench: .venv/.dev
	$(BIN)/python benchmarks/selection.py

docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip

.venv/.%: .venv/bin/python $(SOURCES)
	$(BIN)/pip install --quiet --editable '.[$*]'
	@touch $@

clean:
	rm -rf .venv

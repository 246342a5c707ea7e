# make demo    what our own small networks say about the bundled clip, in runs/demo, and where its report lies; offline
# make test    the whole test-suite, then the linters
# make lint    ruff (lint and format) and mypy
# make wheels  every distribution as a wheel in dist/
# make clean   remove .venv and whatever was built; runs/ stays
# Each builds .venv first where it is missing or older than a pyproject. PYTHON=python3.13 picks the interpreter.

PYTHON ?= python3
BIN := .venv/bin
PROJECTS := pyproject.toml $(sort $(wildcard plugins/*/pyproject.toml))
PLUGINS := $(patsubst %/pyproject.toml,%,$(filter plugins/%,$(PROJECTS)))

.PHONY: demo test lint wheels clean

demo: .venv/installed
	$(BIN)/fourd run recipes/demo.toml --out runs/demo

# Two processes share the test files. The linters run whatever the tests say, so that one look shows all that is wrong.
test: .venv/installed
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --cov=fourd_core --cov-report=term; tests=$$?; \
	$(MAKE) --no-print-directory lint && exit $$tests

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheels: .venv/installed
	rm -rf dist build plugins/*/build
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist . $(PLUGINS:%=./%)
	@ls dist

clean:
	rm -rf .venv build dist *.egg-info plugins/*/build plugins/*/*.egg-info .coverage
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis

# One command installs everything, so that a plugin which needs another finds it here and not at the index.
.venv/installed: $(PROJECTS) constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	echo "fourd needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is $$($(PYTHON) --version 2>&1);" \
	"name another, as in: make PYTHON=python3.13 $(MAKECMDGOALS)" >&2; exit 2; }
	@[ -x $(BIN)/pip ] || $(PYTHON) -m venv .venv || { rm -rf .venv; \
	echo "$(PYTHON) cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 2; }
	$(BIN)/pip install -c constraints.txt -e '.[dev]' $(PLUGINS:%=-e ./%)
	@touch $@

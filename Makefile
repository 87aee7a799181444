# Everything a fresh machine needs: `make demo`, `make test`. Both create .venv on their first run.
PYTHON ?= python3
PYTHONS ?= python3.11 python3.12 python3.13
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SEED ?= $(shell date +%s)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2  # two processes with one thread each: more only wait for each other

.PHONY: demo test test-slow test-deep test-matrix tests check format clean

demo: $(STAMP)
	$(BIN)/wsipipe demo demo

test: $(STAMP) check tests

tests: $(STAMP)
	$(PYTEST)
	$(PYTEST) -m "hypothesis and not slow" --hypothesis-profile fresh

test-slow: $(STAMP)
	$(PYTEST) -m slow

test-deep: $(STAMP)
	$(PYTEST) -m "hypothesis and not slow" --hypothesis-profile deep --shuffle $(SEED) --timeout 3600

# every Python of $(PYTHONS), then the lowest versions that pyproject.toml allows; each has an environment of its own
test-matrix:
	set -e; for python in $(PYTHONS); do rm -rf demo; $(MAKE) demo tests PYTHON=$$python VENV=.venv-$$python; done
	$(MAKE) tests PYTHON=python3.11 VENV=.venv-lowest CONSTRAINTS=constraints-lowest.txt

check: $(STAMP)
	$(BIN)/ruff check wsipipe tests benchmarks
	$(BIN)/ruff format --check wsipipe tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix wsipipe tests benchmarks
	$(BIN)/ruff format wsipipe tests benchmarks

$(STAMP): pyproject.toml $(CONSTRAINTS) tools/install.sh
	@tools/install.sh $(PYTHON) $(VENV) $(CONSTRAINTS)
	@touch $(STAMP)

clean:
	rm -rf .venv .venv-* demo

# Everything a fresh machine needs: `make demo`, `make test`. Both create .venv on their first run.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
SEED ?= $(shell date +%s)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2  # two processes with one thread each: more only wait for each other

.PHONY: demo test test-slow test-deep check format clean

demo: $(STAMP)
	$(BIN)/wsipipe demo demo

test: $(STAMP) check
	$(PYTEST)
	$(PYTEST) -m "hypothesis and not slow" --hypothesis-profile fresh

test-slow: $(STAMP)
	$(PYTEST) -m slow

test-deep: $(STAMP)
	$(PYTEST) -m "hypothesis and not slow" --hypothesis-profile deep --shuffle $(SEED) --timeout 3600

check: $(STAMP)
	$(BIN)/ruff check wsipipe tests benchmarks
	$(BIN)/ruff format --check wsipipe tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix wsipipe tests benchmarks
	$(BIN)/ruff format wsipipe tests benchmarks

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -c "import torchvision.ops"  # a torch and torchvision that do not match fail here, not later
	touch $(STAMP)

clean:
	rm -rf .venv demo

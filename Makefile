# Two targets do all the set-up that they need on a fresh machine: `make demo` and `make test`.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo "$$p" && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-live large lint types contracts check bench clean

demo: $(STAMP)
	@$(BIN)/joblib-azure demo

# Tests that start clusters are heavy: as many workers as cores, a file a worker, so that files share clusters.
test: $(STAMP)
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not large"

# The smoke suite on a real account, named in the environment as README.md tells; `make test` runs it on the emulator.
test-live: $(STAMP)
	@JOBLIB_AZURE_LIVE=1 $(BIN)/python -m pytest -ra tests/live

large: $(STAMP)
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m large
	@JOBLIB_AZURE_FUZZ=20 $(BIN)/python -m pytest -n 2 --dist loadfile -m fuzz --timeout 3600

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMP)
	@$(BIN)/mypy

contracts: $(STAMP)
	@$(BIN)/lint-imports --no-cache

check: lint types contracts test

bench: $(STAMP)
	@$(BIN)/python benchmarks/bench_requests.py
	@$(BIN)/python benchmarks/bench_peers.py --quick
	@$(BIN)/python benchmarks/bench_data.py --quick
	@$(BIN)/python benchmarks/bench_overhead.py --quick
	@$(BIN)/python benchmarks/bench_max_tasks.py --quick

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: Python 3.10 or newer is needed and was not found; set PYTHON=…" >&2; exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version), once …"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist

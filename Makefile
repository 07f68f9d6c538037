# Everything a newcomer needs; the set-up happens by itself on first use, in .venv.
PRESET ?=
CORPUS ?=
EVAL ?=
STUDY ?=
PYTHON ?= $(shell for p in python3.11 python3.12 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null \
	&& echo $$p && break; done)
BIN := .venv/bin
READY := .venv/.ready
CIRCUITSEER := $(BIN)/circuitseer
# Files of tests side by side, each on one thread; on two cores a third makes them no faster.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# PRESET, CORPUS and EVAL become options only where they are given.
OVERRIDES := $(if $(PRESET),--preset "$(PRESET)") $(if $(CORPUS),--corpus "$(CORPUS)") \
	$(if $(EVAL),--eval "$(EVAL)")

.DEFAULT_GOAL := help
.PHONY: help setup demo run plan sweep study dev bench test test-long test-all screenshots check lint types contracts sql audit dbt format lock

help:  ## show this list
	@grep -hE '^[a-z-]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/:.*  ## /\t/' | expand -t 14

setup: $(READY)  ## make .venv from requirements.lock

$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python must be 3.11 or 3.12, found neither; name one with PYTHON=path/to/python" >&2; exit 1; }
	@echo "setting up .venv with $(PYTHON) (about 7 GB, once)" >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $(READY)

demo: $(READY)  ## run the whole graph: PRESET=tiny|smollm2|gsm8k CORPUS=file EVAL=file
	@$(CIRCUITSEER) run $(OVERRIDES)

run: $(READY)  ## make what is out of date on the settings in use, and nothing else
	@$(CIRCUITSEER) run $(OVERRIDES)

plan: $(READY)  ## say what `make run` would do with every asset, and why
	@$(CIRCUITSEER) plan $(if $(PRESET),--preset "$(PRESET)")

sweep: $(READY)  ## compare the base models and budgets of the settings' `sweep`
	@$(CIRCUITSEER) sweep $(if $(PRESET),--preset "$(PRESET)")

study: $(READY)  ## compare ways to select: PRESET=tiny|smollm2, STUDY=full for all of them
	@$(CIRCUITSEER) study $(OVERRIDES) $(if $(filter full,$(STUDY)),--all-methods)

dev: $(READY)  ## start the Dagster UI (127.0.0.1:3000) and the MLflow UI (127.0.0.1:5000)
	@$(CIRCUITSEER) dev $(if $(PRESET),--preset "$(PRESET)")

bench: $(READY)  ## every measurement with a bar, two hours; writes bench/RESULTS.md
	$(BIN)/python -m bench.run_all

test: $(READY)  ## the tests, without the long ones
	$(PYTEST) -m "not long"

test-long: $(READY)  ## the tests that take minutes
	$(PYTEST) -m long --durations 15

test-all: $(READY)  ## both, in one session, whose homes they share
	$(PYTEST) --durations 15

screenshots: $(READY)  ## take the pictures of the README anew; needs Chromium
	SCREENSHOTS=docs/images $(BIN)/pytest -q tests/browser/test_ui.py

check: lint types sql audit test  ## everything that must hold before a commit

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

contracts: $(READY)
	$(BIN)/lint-imports

sql: $(READY)
	$(BIN)/sqlfluff lint dbt_meta resources/migrations

audit: $(READY)  ## look the locked dependencies up among the known vulnerabilities
	$(BIN)/python .ci/audit.py requirements.lock

dbt: $(READY)
	$(BIN)/pytest tests/dbt

format: $(READY)  ## let ruff and sqlfluff format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(READY)  ## resolve requirements.lock anew
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --no-header \
		--python-version 3.11 --extra ray --extra postgres --group dev pyproject.toml -o requirements.lock

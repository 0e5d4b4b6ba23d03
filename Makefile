# The installed environment is stamped, so a target installs only after pyproject.toml or
# constraints.txt has changed.
PYTHON ?= python3
ARGS ?=

BIN := .venv/bin
STAMP := .venv/.installed
ENGINE := .venv/.engine
JOBS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help venv mt10 cartpole test test-all test-long lint clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9_-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "ARGS=... adds options, as in: make mt10 ARGS='--seed 1 --total-steps 100000'"
	@echo "JOBS=N runs tests in N processes (2)"

venv: $(STAMP) ## make .venv and install everything, pinned (PYTHON=... chooses the Python)

# An environment that works is kept. A missing or broken one is made from scratch.
# Old versions of pip need --use-pep517 to build seqeval, which has no wheel.
$(STAMP): pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --use-pep517 --constraint constraints.txt --editable '.[dev]'
	@touch $@

mt10: $(STAMP) ## search, train and evaluate on Meta-World MT10
	$(BIN)/python -m conal_rl.train mt10 $(ARGS)

cartpole: $(STAMP) ## the same on CartPole variants, in minutes
	$(BIN)/python -m conal_rl.train cartpole $(ARGS)

# The first compilation of the engine takes half a minute. It is done here, so that two test
# processes do not do it at once, and the time of the tests does not include it.
$(ENGINE): $(STAMP) $(wildcard conal_rl/envs/native/*.py)
	@$(BIN)/python -m tests.helpers.compile_engine
	@touch $@

test: $(ENGINE) ## quick tests; the last line is their time (ARGS='tests/core -k tree' chooses)
	$(PYTEST) -m "not slow and not long" $(ARGS)

test-all: $(ENGINE) ## all tests that CI runs, the quick ones included
	$(PYTEST) -m "not long" $(ARGS)

test-long: $(ENGINE) ## slow tests: run them by hand and record them in tests/LONG.md
	$(PYTEST) -m long $(ARGS)
	@echo "Add a line to tests/LONG.md:"
	@echo "| $$(date +%F) | $$(git rev-parse --short HEAD) | passed | MACHINE |"

lint: $(STAMP) ## check style and types
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy

clean: ## remove .venv, caches and build leftovers; runs/ stays
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find conal_rl tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The installed environment is stamped, so a target installs only after pyproject.toml or
# constraints.txt has changed.
PYTHON ?= python3
ARGS ?=

BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help venv mt10 cartpole test lint clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9_-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "ARGS=... adds options, as in: make mt10 ARGS='--seed 1 --total-steps 100000'"

venv: $(STAMP) ## make .venv and install everything, pinned (PYTHON=... chooses the Python)

# An environment that still runs is kept; a missing or broken one is made anew. Old versions of pip
# need to be told to build what has no wheel (seqeval) in isolation.
$(STAMP): pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --use-pep517 --constraint constraints.txt --editable '.[dev]'
	@touch $@

mt10: $(STAMP) ## search, train and evaluate on Meta-World MT10
	$(BIN)/python -m conal_rl.train mt10 $(ARGS)

cartpole: $(STAMP) ## the same on CartPole variants, in minutes
	$(BIN)/python -m conal_rl.train cartpole $(ARGS)

test: $(STAMP) ## run the tests (ARGS='-m "not slow"' for the quick ones alone)
	$(BIN)/python -m pytest $(ARGS)

lint: $(STAMP) ## check style and types
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy

clean: ## remove .venv, caches and build leftovers; runs/ stays
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find conal_rl tests -name __pycache__ -type d -prune -exec rm -rf {} +

# `make help` lists the commands.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help install run test lint bench migrate

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(BIN)/installed: requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is required: make PYTHON=python3.12")'
	@echo "Installing into .venv (once)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/dev.txt
	@touch $@

install: $(BIN)/installed ## install the dependencies into .venv

run: install ## serve on HOST:PORT, with an embedded PostgreSQL if DATABASE_URL is unset
	@$(BIN)/python -m backend

# More processes than cores, because many tests wait. With bytecode, pytest caches the rewritten assertions.
test: lint ## lint, check types and run all tests on a real PostgreSQL (ARGS="--cov" adds coverage)
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses=4 --dist=loadfile --no-loadscope-reorder $(ARGS)

lint: install ## check style and types
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --quiet --check
	@$(BIN)/mypy --no-error-summary

bench: install ## measure the service against two peers (ARGS="--help" lists the options)
	@$(BIN)/python -m backend.benchmarks $(ARGS)

migrate: install ## upgrade the database schema
	@$(BIN)/alembic upgrade head

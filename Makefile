# Everything begins with `make run`. The environment is .venv, made by infra/bootstrap.py; state is below DARKROOM_HOME.

PYTHON ?= python3
BIN := .venv/bin
DATA ?=
NAME ?=
data_option = $(if $(DATA),--data "$(DATA)")
name_option = $(if $(NAME),--name "$(NAME)")
section_option = $(foreach one,$(SECTION),--section $(one))

.DEFAULT_GOAL := help
.PHONY: help install run up down status test test-all lint format bench-pipeline bench-ingest bench-loading bench-training bench-serving

help: ## show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */  make \1\t/' | expand -t 24

install: ## the environment only (8.4 GB in .venv)
	@$(PYTHON) infra/bootstrap.py

run: install ## from pictures to a served model: the bundled digits, or DATA=folder-or-s3-prefix
	@$(BIN)/darkroom run $(data_option) $(name_option)

up: install ## start the platform
	@$(BIN)/darkroom up

down: ## end every process, keep the data
	@$(BIN)/darkroom down

status: ## what runs, and where to look
	@$(BIN)/darkroom status

lint: install ## format, lint, types, import contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: install ## let ruff mend what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

test: lint ## lint, then all tests from fast to heavy (25 minutes at most on 2 cores)
	@$(BIN)/pytest -m "not full"

test-all: lint ## the same with full counts of kills and deployments
	@$(BIN)/pytest

bench-pipeline: install ## seconds and images/s per step, overhead, memory (DATA= for a folder)
	@$(BIN)/python tests/benchmarks/bench_pipeline.py $(data_option) $(if $(JSON),--json)

bench-ingest: install ## images/s of ingest, small and photo-size (DATA= for a folder)
	@$(BIN)/python tests/benchmarks/bench_ingest.py $(DATA) $(if $(JSON),--json)

bench-loading: install ## images/s from DATA=photographs, and memory (SECTION=one-core|loader|memory)
	@$(BIN)/python tests/benchmarks/bench_loading.py $(data_option) $(section_option) $(OPTIONS) $(if $(JSON),--json)

bench-training: install ## training beside its controls (SECTION=, DATA=, SEEDS=, MINUTES=, AIRBENCH=; OPTIONS=--help)
	@$(BIN)/python tests/benchmarks/bench_training.py $(data_option) $(section_option) $(if $(SEEDS),--seeds $(SEEDS)) \
		$(if $(MINUTES),--minutes $(MINUTES)) $(if $(AIRBENCH),--airbench "$(AIRBENCH)") $(OPTIONS) $(if $(JSON),--json)

bench-serving: install ## serving beside its controls (SECTION=, DATA=photographs, PEERS=1; OPTIONS=--help)
	@$(BIN)/python tests/benchmarks/bench_serving.py $(data_option) $(section_option) $(if $(PEERS),--peers) $(OPTIONS) \
		$(if $(JSON),--json)

# cortex: `make demo` sets everything up and shows it working; `make test` proves it.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TOOLS := .tools
UV := $(shell command -v uv 2>/dev/null || echo $(TOOLS)/bin/uv)
STAMP := $(VENV)/.cortex-setup

# A CUDA build is a different build of one package: uv keys its cache on these settings, so that
# switching between the two never reuses the wrong one.
ifeq ($(CUDA),1)
SYNC_FLAGS := --config-settings-package llama-cpp-python:cmake.define.GGML_CUDA=on
FLAVOUR := cuda
else
FLAVOUR := cpu
endif

.PHONY: help setup demo up test lint lock clean tiny bench

help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

setup: $(STAMP) ## Install everything into .venv (CUDA=1 builds llama.cpp for NVIDIA GPUs)
	@[ "$$(cat $(STAMP))" = "$(FLAVOUR)" ] || [ -z "$(CUDA)" ] || { rm -f $(STAMP); $(MAKE) $(STAMP); }

$(STAMP): uv.lock pyproject.toml $(wildcard packages/*/pyproject.toml) | $(UV)
	@echo "cortex: installing into $(VENV); the first time llama.cpp is compiled (a few minutes)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "cortex: Python 3.11 or newer is needed; set PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) tools/build_flags.py | xargs -t $(UV) sync --python $(PYTHON) $(SYNC_FLAGS)
	@$(BIN)/python tools/lock.py
	@echo $(FLAVOUR) > $@

$(TOOLS)/bin/uv:
	@echo "cortex: uv is not on PATH; installing it into $(TOOLS)"
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --quiet --disable-pip-version-check uv

demo: setup ## Start gateway and neuron, ask a few things, show the answers, stop
	@$(BIN)/cortex demo

up: setup ## Run gateway and one local neuron until Ctrl-C
	@$(BIN)/cortex up

test: setup ## Every tier: unit, fleet, e2e, gpu (skipped without one)
	@$(BIN)/pytest -q -n 2 --dist loadfile

lint: setup ## ruff (check and format) and pyright
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright --warnings

lock: | $(UV) ## Resolve dependencies anew and write an index-neutral uv.lock
	$(UV) lock --python $(PYTHON)
	@$(PYTHON) tools/lock.py

bench: setup ## Print the benchmark tables (needs a quiet machine; builds its peers once)
	@SOAK_REQUESTS=2000 API_CASES=2000 $(BIN)/pytest -q -s tests/e2e/test_soak.py tests/e2e/test_schemathesis.py
	@$(BIN)/python -m tests.bench.engine
	@$(BIN)/python -m tests.bench.steps
	@$(BIN)/python -m tests.bench.cores
	@$(BIN)/python -m tests.bench.fleet
	@$(BIN)/python -m tests.bench.chat
	@$(BIN)/python -m tests.bench.constraints
	@$(BIN)/python -m tests.bench.gateway
	@$(BIN)/python -m tests.bench.gateway --only streams --targets cortex litellm \
	  --paths /v1/chat/completions /v1/messages /v1/responses

tiny: ## Train, export and evaluate cortex/tiny again (about an hour and a half on 2 cores)
	$(PYTHON) -m venv build/tiny-venv
	build/tiny-venv/bin/pip install --quiet -r tools/tiny/requirements.txt
	build/tiny-venv/bin/python -m tools.tiny --out build/tiny

clean: ## Remove what setup made
	rm -rf $(VENV) $(TOOLS) build .pytest_cache .ruff_cache .hypothesis

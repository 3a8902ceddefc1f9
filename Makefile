# One door: `make serve` needs Python 3.11 and a C compiler, nothing else.

PYTHON ?= python3
VENV   ?= .venv
# Installed first, so that you choose its build: TORCH="torch==2.13.0 --index-url URL", where URL is
# PyTorch's index of the build you want (CPU, or your CUDA version).
TORCH  ?= torch==2.13.0
# Passed on to the command: make serve ARGS="--port 9000"
ARGS   ?=

BIN       := $(VENV)/bin
CODE      := engine protocol server loadtest deploy tests examples
INSTALLED := $(VENV)/.installed
DEV       := $(VENV)/.installed-dev
# Programs of others that tests run, as Debian names them (command:package).
SERVERS   := redis-server:redis-server promtool:prometheus nginx:nginx-light systemd-analyze:systemd

.PHONY: install serve test servers lint type check fmt bench
.DEFAULT_GOAL := serve

install: $(INSTALLED)
	$(BIN)/qwen-serve pull

serve: install
	exec $(BIN)/qwen-serve serve $(ARGS)

test: $(DEV) servers
	$(BIN)/python -m pytest $(ARGS)

servers:
	@missing=; for each in $(SERVERS); do \
	  command -v $${each%%:*} >/dev/null || missing="$$missing $${each#*:}"; done; \
	[ -z "$$missing" ] || deploy/install_packages.sh $$missing

lint: $(DEV)
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/lint-imports

type: $(DEV)
	$(BIN)/mypy

check: lint type test

fmt: $(DEV)
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

bench: $(INSTALLED)
	model=$$($(BIN)/qwen-serve pull) && for part in engine.bench loadtest.frontend loadtest.whole; do \
	  $(BIN)/python -m $$part --model "$$model" || exit; done

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: Python 3.11 or newer is needed; name one with PYTHON=" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Stamps: what is installed is only looked at again when pyproject.toml or the kernels change.
$(INSTALLED): pyproject.toml $(wildcard engine/kernels/*.cpp engine/kernels/*.h) | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -q $(TORCH)
	$(BIN)/python -m pip install --disable-pip-version-check -q -e .
	@touch $@

$(DEV): $(INSTALLED)
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[dev]'
	@touch $@

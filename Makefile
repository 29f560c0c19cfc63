# `make demo` and `make test` do all the set-up themselves.
#   PYTHON            the interpreter that makes the virtual environment
#   TORCH_INDEX_URL   a package index that holds another build of torch (for instance the CPU-only
#                     one that PyTorch's install page names); empty: whatever pip is set up with
PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX_URL ?=
DEMO_ARGS ?=

BIN := $(CURDIR)/$(VENV)/bin
TORCH_FROM := $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL),)
# The environment's ninja comes first: DeepSpeed compiles its CPU communication operator with it, and
# an older ninja of the system would rebuild that operator at every launch.
export PATH := $(BIN):$(PATH)
export TORCH_EXTENSIONS_DIR ?= $(CURDIR)/$(VENV)/torch_extensions
# No run of this Makefile asks a model hub for anything.
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test test-train test-rest test-full setup lint clean

demo: setup
	$(BIN)/genrecal demo $(DEMO_ARGS)

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) --no-print-directory --jobs 2 test-train test-rest

# About half of the time each; both in one process with `pytest`.
test-train: setup
	$(BIN)/python -m pytest tests/train

test-rest: setup
	$(BIN)/python -m pytest tests --ignore tests/train

test-full: setup
	$(BIN)/python -m pytest -m ""

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip setuptools wheel packaging ninja numpy
	@echo "installing torch"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(TORCH_FROM) torch
	@echo "installing genrecal with every extra"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[train,export,edge,serve,bench,dev]"
	@echo "compiling DeepSpeed's CPU communication operator (once, one to two minutes)"
	$(BIN)/python -m genrecal.train.comm_operator
	touch $@

lint: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV)

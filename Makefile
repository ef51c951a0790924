# `make train` and `make test` go from a fresh clone to a result; `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUTPUT ?= runs/digits
STAMP := $(VENV)/.installed
SOURCES := setup.py pyproject.toml constraints.txt CMakeLists.txt $(shell find csrc -type f)

.PHONY: help env train test bench clean

help:
	@echo "make train   environment, build, a training run on the digits, report in $(OUTPUT)/report.html"
	@echo "make test    environment, build, all tests"
	@echo "make bench   the benchmarks against eager PyTorch (a quiet machine; several minutes)"
	@echo "make clean   removes $(VENV) and build output"
	@echo "Variables: PYTHON=python3.x, VENV=dir, OUTPUT=dir, ARGS='options for the command'"

env: $(STAMP)

# torch first and pinned: what follows must not choose another build of it.
$(STAMP): $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "cplearn-kernels needs Python 3.10 or later; name one with make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch numpy
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[train,bench,test]'
	touch $@

train: env
	$(BIN)/python -m train --output-dir $(OUTPUT) --overwrite $(ARGS)
	@echo "Report: $(OUTPUT)/report.html"

test: env
	$(BIN)/python -m pytest $(ARGS)

bench: env
	$(BIN)/python -m pytest bench/ --benchmark $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info cplearn_kernels/_core*.so

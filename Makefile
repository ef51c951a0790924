# `make train` and `make test` go from a fresh clone to a result; `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUTPUT ?= runs/digits
STAMP := $(VENV)/.installed
SOURCES := setup.py pyproject.toml constraints.txt CMakeLists.txt $(shell find csrc cmake -type f)
# Machine code of the CUDA kernels, where nvcc is found. sm_90a, in a wheel, is sm_90 again: no kernel uses what it adds.
CUDA_ARCHITECTURES ?= 80;90;100

.PHONY: help env train test test-slow test-all lint bench sanitize test-aarch64 clean

help:
	@echo "make train   environment, build, a training run on the digits, report in $(OUTPUT)/report.html"
	@echo "make test    environment, build, and of every kind of test the quick ones, in two processes: about 7 minutes on two cores"
	@echo "make test-slow   the tests that make test leaves out"
	@echo "make test-all    both in one run"
	@echo "make lint    ruff's checks and format, mypy over cplearn_kernels, and a C++ build in which warnings are errors"
	@echo "make bench   the benchmarks against eager PyTorch (a quiet machine; several minutes)"
	@echo "make sanitize      the C++ test program under the address, undefined-behaviour and thread sanitizers"
	@echo "make test-aarch64  the C++ test program built for 64-bit ARM and run by qemu-user"
	@echo "make clean   removes $(VENV) and build output"
	@echo "Variables: PYTHON=python3.x, VENV=dir, OUTPUT=dir, CASES=n (C++ tests), JOBS=n (test processes),"
	@echo "           CUDA_ARCHITECTURES='80;90;100', ARGS='options for the command'"

env: $(STAMP)

# torch first and pinned: what follows must not choose another build of it.
$(STAMP): $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "cplearn-kernels needs Python 3.10 or later; name one with make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch numpy
	CMAKE_ARGS='-DCPLEARN_CUDA_ARCHITECTURES=$(CUDA_ARCHITECTURES)' $(BIN)/python -m pip install --quiet \
		--disable-pip-version-check -c constraints.txt --editable '.[train,bench,test,lint]'
	touch $@

train: env
	$(BIN)/python -m train --output-dir $(OUTPUT) --overwrite $(ARGS)
	@echo "Report: $(OUTPUT)/report.html"

# A file of tests stays in one process: its fixtures are made once, and its dictionaries' codes too.
JOBS ?= 2
PYTEST = $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile
test: env
	$(PYTEST) -m 'not slow' $(ARGS)

test-slow: env
	$(PYTEST) -m slow $(ARGS)

test-all: env
	$(PYTEST) $(ARGS)

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/cmake -S . -B build/warnings $(NATIVE) -DCPLEARN_WARNINGS_AS_ERRORS=ON
	$(BIN)/cmake --build build/warnings

bench: env
	$(BIN)/python -m pytest bench/ --benchmark $(ARGS)

# cmake and a C++ compiler do; no Python, no torch. Each configuration has a folder of its own under build/.
CASES ?= 300
NATIVE := -DCMAKE_BUILD_TYPE=Release -DCPLEARN_BUILD_PYTHON=OFF -DCPLEARN_BUILD_TESTS=ON

sanitize:
	cmake -S . -B build/address $(NATIVE) "-DCPLEARN_SANITIZE=address,undefined"
	cmake --build build/address
	build/address/test_kernels --cases $(CASES)
	cmake -S . -B build/thread $(NATIVE) -DCPLEARN_SANITIZE=thread
	cmake --build build/thread
	build/thread/test_kernels --cases $(CASES)

test-aarch64:
	@command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null || \
		{ echo "needs Debian's packages g++-aarch64-linux-gnu and qemu-user"; exit 1; }
	cmake -S . -B build/aarch64 $(NATIVE) -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
		-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++
	cmake --build build/aarch64
	qemu-aarch64 -L /usr/aarch64-linux-gnu build/aarch64/test_kernels --cases $(CASES)

clean:
	rm -rf $(VENV) build dist *.egg-info cplearn_kernels/_core*.so

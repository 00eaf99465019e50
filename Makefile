# make demo   a ranker learns from a generated log, here and now
# make test   the fast test suite
# make bench  every operator against its peers, on this machine (a few cases of each)
# Everything is installed into VENV, made with PYTHON. Where it holds no torch yet, TORCH is installed.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.stca-installed
LINTERS := $(VENV)/.stca-linters
NATIVE := $(shell find csrc tests/simt -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' -o -name 'CMakeLists.txt')

.PHONY: demo test bench lint doctest kernels clean

demo: $(INSTALLED)
	$(BIN)/python examples/train_ranker.py

test: $(INSTALLED)
	$(BIN)/python -m pytest

bench: $(INSTALLED)
	$(BIN)/python benchmarks/compare.py --quick --json build/benchmarks.json

lint: $(LINTERS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(filter-out %.txt,$(NATIVE))

doctest: $(INSTALLED)
	$(BIN)/python -m pytest --doctest-modules stca

# The kernels alone, without torch and Python.
kernels: $(INSTALLED)
	$(BIN)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -S csrc/kernels -B build/kernels
	$(BIN)/cmake --build build/kernels

clean:
	rm -rf build dist *.egg-info stca/*.so $(INSTALLED)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# What the build needs is listed in pyproject.toml alone.
$(INSTALLED): pyproject.toml setup.py CMakeLists.txt $(NATIVE) | $(BIN)/python
	$(BIN)/python -c "import tomllib; print('\n'.join(tomllib.load(open('pyproject.toml', 'rb'))['build-system']['requires']))" \
	  | xargs -d '\n' $(BIN)/python -m pip install --quiet
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[test]'
	touch $@

$(LINTERS): pyproject.toml $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[lint]'
	touch $@

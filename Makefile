# make demo   a ranker learns from a generated log, here and now
# make test   the fast test suite
# make slow   what takes minutes, and what needs libraries that use batches and logs: ray, torchrec, torchdata, polars, duckdb
# make bench  a few cases of every operator and of the whole stack against their peers, here: 2 minutes on two idle cores
# make cuda-build  the build against a torch with CUDA (5 GB, in a folder of its own), and a look at its machine code
# make gpu    on a machine with a GPU, a torch with CUDA and nvcc: build, tests, compute-sanitizer, benchmarks
# Everything is installed into VENV, made with PYTHON. Where it holds no torch yet, TORCH is installed.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
CUDA_VENV ?= .venv-cuda
CUDA_TORCH ?= torch==2.11.0
# This machine's nvcc, or, where it has none, the one of the Python package index.
CUDACXX ?= $(or $(shell command -v nvcc),$(VENV)/cuda/bin/nvcc)

BIN := $(VENV)/bin
CMAKE := $(BIN)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja
INSTALLED := $(VENV)/.stca-installed
LINTERS := $(VENV)/.stca-linters
NATIVE := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' -o -name 'CMakeLists.txt')

SIMT := build/simt

# Installs into the environment $(1) what pyproject.toml lists under $(2).
listed = $(1)/bin/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))$(2), sep='\n')" \
  | xargs -d '\n' $(1)/bin/python -m pip install --quiet

.PHONY: demo test slow bench lint doctest simt kernels cuda-build gpu clean

demo: $(INSTALLED)
	$(BIN)/python examples/train_ranker.py

test: $(INSTALLED) simt
	$(BIN)/python -m pytest

# torchrec asks for fbgemm-gpu, of which fbgemm-gpu-cpu is the build without CUDA; these fit torch 2.13.
slow: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[ray,peers]'
	$(BIN)/python -m pip install --quiet --no-deps fbgemm-gpu-cpu==1.8.0 torchrec==1.8.0
	$(BIN)/python -m pytest -m 'slow or peers' -rs

# One table per case, peers included; compare.py and growth.py measure the whole grid, report.py writes it up.
bench: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[bench]'
	$(BIN)/python -m pip install --quiet --no-deps fbgemm-gpu-cpu==1.8.0
	$(BIN)/python -m pytest -rs benchmarks/bench_*.py --timeout 0 \
	  --benchmark-group-by group --benchmark-columns median,iqr,rounds --benchmark-sort fullname \
	  --benchmark-json build/benchmarks.json
	$(BIN)/python benchmarks/compare.py --quick --json build/compare.json

lint: $(LINTERS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(filter-out %.txt,$(NATIVE)) $(wildcard tests/simt/*.cpp tests/simt/*.h)

doctest: $(INSTALLED)
	$(BIN)/python -m pytest --doctest-modules stca

# The CUDA kernels for the emulator of tests/simt, which runs them on the CPU.
simt: $(INSTALLED)
	$(CMAKE) -S tests/simt -B $(SIMT) \
	  -DSTCA_TORCH_DIR=$$($(BIN)/python -c "import torch; print(*torch.__path__)") --log-level=WARNING
	$(BIN)/cmake --build $(SIMT)

# The kernels alone, without torch and Python: for every instruction set and every CUDA architecture.
kernels: $(INSTALLED) $(CUDACXX)
	CUDACXX=$(abspath $(CUDACXX)) $(CMAKE) -S csrc/kernels -B build/kernels -DSTCA_CUDA=ON
	$(BIN)/cmake --build build/kernels

cuda-build: | $(CUDA_VENV)/bin/python
	$(MAKE) VENV=$(CUDA_VENV) $(CUDA_VENV)/cuda/bin/nvcc
	$(call listed,$(CUDA_VENV),['build-system']['requires'])
	$(CUDA_VENV)/bin/pip install --quiet $(CUDA_TORCH)
	CUDA_HOME=$(abspath $(CUDA_VENV)/cuda) STCA_CMAKE_ARGS=-DSTCA_CUDA=ON \
	  $(CUDA_VENV)/bin/pip install --quiet --no-build-isolation .
	$(CUDA_VENV)/bin/python tools/cuda_build.py

# With the Python that holds torch: nothing is installed, no network is needed.
gpu:
	$(PYTHON) tools/on_gpu.py

clean:
	rm -rf build dist *.egg-info stca/*.so $(INSTALLED)

%/bin/python:
	$(PYTHON) -m venv $*

%/cuda/bin/nvcc: | %/bin/python
	$(call listed,$*,['project']['optional-dependencies']['nvcc'])
	ln -sfn $$($*/bin/python -c "import nvidia; print(*nvidia.__path__)")/cu13 $*/cuda
	ln -sfn lib $*/cuda/lib64
	ln -sf libcudart.so.13 $*/cuda/lib/libcudart.so

$(INSTALLED): pyproject.toml setup.py CMakeLists.txt $(NATIVE) | $(BIN)/python
	$(call listed,$(VENV),['build-system']['requires'])
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[test]'
	touch $@

$(LINTERS): pyproject.toml $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[lint]'
	touch $@

# make demo   a ranker learns from a generated log, here and now
# make test   the fast test suite
# make slow   the exhaustive rest of it: every combination, and what takes minutes; PART=1 to 6: a sixth of it
# make peers  tests with libraries that use batches and logs: ray, torchrec, torchdata, polars, duckdb; with redis-server
# make serve  the demo's ranker behind HTTP on 127.0.0.1:8000, its users' histories kept encoded
# make bench  a few cases of every operator and of the whole stack against their peers, here: a minute on two idle cores
# make sanitize  the operators compiled with sanitizers: docs/reliability/sanitizers.md; sanitize-quick: a few tests of it
# make fuzz MINUTES=30  fuzzers on everything that reads files of others, with planted faults that they must find
# make wheel  dist/stca-*.whl: one file for every Python and every torch of TORCHES; CUDA=1 with kernels for CUDA_ARCHS
# make wheel-twice  the wheel built in two folders, byte by byte the same
# make matrix the wheel in fresh environments, every Python here with every torch: 5 GB at a time and three minutes each
# make arm64  the build for Arm64, cross-compiled, and tests of the operators in an emulator: 5 GB
# make docs   the pages of docs/ and the API as HTML: build/docs/index.html
# make cuda-build  the build against a torch with CUDA (5 GB, in a folder of its own), and a look at its machine code
# make soak   trains and scores in one process for MINUTES, and finds what grows, a planted leak too
# make prove  everything that tries to break the package: sanitizers, fuzzers, soak, faults; three hours at most, resumable
# make gpu    on a machine with a GPU, a torch with CUDA and nvcc: build, tests, benchmarks, and which kernels they confirm
# make gpu-sanitize  there too: the build and a few tests under compute-sanitizer; docs/extending.md has the order
# make tune   all variants of the CUDA kernels, compiled where nvcc is; then, on a machine with a Hopper GPU and a torch:
# make gpu-tune  which of them run, and where one kernel takes over from another, by time; before make gpu
# Everything is installed into VENV, made with PYTHON. Where it holds no torch yet, TORCH is installed.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
# What the wheel is built for; all that tools/build_wheel.py lists where none is named.
TORCHES ?=
# What an environment may call CUDA, such as a toolkit's folder, asks for nothing.
WITH_CUDA := $(filter 1,$(CUDA))
# With CUDA=1: machine code, which serves later minor versions too (86: sm_89), and PTX of 100 for what comes after.
CUDA_ARCHS ?= 80-real;86-real;90a-real;100;120-real
CUDA_VENV ?= .venv-cuda
CUDA_TORCH ?= torch==2.11.0
# This machine's nvcc, or, where it has none, the one of the Python package index.
CUDACXX ?= $(or $(shell command -v nvcc),$(VENV)/cuda/bin/nvcc)

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet
# Threads that wait sleep: else those of many small operations keep a busy machine's cores from everybody.
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest
# Processes that share the tests: most tests keep one core busy. Each takes up to 5 GB.
TEST_PROCESSES ?= 2
EDITABLE := $(INSTALL) --no-build-isolation --editable
CMAKE := $(BIN)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja
NATIVE := $(shell find csrc -type f)
# torchrec asks for fbgemm-gpu, of which fbgemm-gpu-cpu is the build without CUDA; these fit torch 2.13.
FBGEMM := fbgemm-gpu-cpu==1.8.0
TORCHREC := torchrec==1.8.0
TRITON := triton==3.9.0
# Empty files that say when the package, and the linters, were installed.
INSTALLED := $(VENV)/.stca-installed
LINTERS := $(VENV)/.stca-linters

.PHONY: demo serve test slow peers bench fuzz soak prove wheel wheel-twice matrix arm64 lint doctest docs ptx ptx-check kernels counts sanitize sanitize-quick cuda-build gpu gpu-sanitize tune gpu-tune clean

demo: $(INSTALLED)
	$(BIN)/python examples/train_ranker.py

# With times of events in place of their age, so that a row's encoding lasts.
serve: build/serve/generated-STCA.pt
	PYTHONPATH=examples $(BIN)/python -m serve --checkpoint $< --store build/serve/events.sqlite

build/serve/generated-STCA.pt: | $(INSTALLED)
	$(BIN)/python examples/train_ranker.py --event-time --out build/serve

# The blocks of a page use names of those before them, so one process runs them all.
test: $(INSTALLED) ptx
	$(PYTEST) -n $(TEST_PROCESSES) tests
	$(PYTEST) docs README.md

slow: $(INSTALLED) ptx
	$(PYTEST) -n $(TEST_PROCESSES) -m 'slow and not peers and not long' \
	  $(if $(PART),--splits 6 --group $(PART) --splitting-algorithm least_duration)

peers: $(INSTALLED)
	$(EDITABLE) '.[ray,peers]'
	command -v redis-server || apt-get install --yes redis-server
	$(INSTALL) --no-deps $(FBGEMM) $(TORCHREC)
	$(PYTEST) -m peers -rs

fuzz: $(INSTALLED)
	$(EDITABLE) '.[fuzz]'
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/fuzz.py --minutes $(or $(MINUTES),30) $(FUZZ)

# One table per case, peers included; compare.py and growth.py measure the whole grid, report.py writes it up.
bench: $(INSTALLED)
	$(EDITABLE) '.[bench]'
	$(INSTALL) --no-deps $(FBGEMM)
	$(BIN)/python -m pytest -rs benchmarks/bench_*.py --timeout 0 \
	  --benchmark-group-by group --benchmark-columns median,iqr,rounds --benchmark-sort fullname \
	  --benchmark-json build/benchmarks.json

soak: $(INSTALLED)
	OMP_WAIT_POLICY=passive $(BIN)/python tools/soak.py --minutes $(or $(MINUTES),60) --report build/soak.json

prove: $(INSTALLED) ptx
	$(EDITABLE) '.[fuzz]'
	command -v valgrind || apt-get install --yes valgrind
	$(BIN)/python tools/prove.py $(PROVE)

wheel wheel-twice: $(BIN)/python $(if $(WITH_CUDA),$(CUDACXX))
	$(BIN)/python tools/install.py build
	$(BIN)/python tools/install.py wheel
	$(if $(WITH_CUDA),CUDACXX=$(abspath $(CUDACXX))) $(BIN)/python tools/$(if $(filter wheel,$@),build_wheel,wheel_twice).py \
	  $(if $(WITH_CUDA),--cuda '$(CUDA_ARCHS)') $(TORCHES)

matrix: wheel
	$(BIN)/python tools/matrix.py $(MATRIX) $(TORCHES)

arm64: $(BIN)/python
	$(BIN)/python tools/install.py build
	$(BIN)/python tools/install.py wheel
	command -v aarch64-linux-gnu-g++ && command -v qemu-aarch64 || apt-get install --yes g++-aarch64-linux-gnu qemu-user
	$(BIN)/python tools/arm64.py $(ARM64_TESTS)

# .pre-commit-config.yaml runs the same.
lint: $(LINTERS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(filter-out %.txt %.sh,$(NATIVE)) $(wildcard tests/sanitize/*.cpp tests/sanitize/*.h tests/ptx/*.cpp tests/ptx/*.h tests/ptx/*.cu)

doctest: $(INSTALLED)
	$(PYTEST) --doctest-modules stca

docs: $(INSTALLED)
	$(EDITABLE) '.[docs]'
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

# The CUDA kernels as PTX, and the machine of tests/ptx, which runs it on the CPU.
ptx: $(INSTALLED) $(CUDACXX)
	CUDACXX=$(abspath $(CUDACXX)) $(CMAKE) -S tests/ptx -B build/ptx --log-level=WARNING \
	  -DSTCA_TORCH_DIR=$$($(BIN)/python -c "import torch; print(*torch.__path__)")
	$(BIN)/cmake --build build/ptx

# Triton's kernels, whose code is known to run on GPUs, in that machine. Triton compiles without a GPU.
ptx-check: ptx build/triton/triton
	PYTHONPATH=build/triton $(BIN)/python -m pytest tests/ptx/check_triton.py

# The CUDA kernels alone, without torch and Python, for every architecture. What ptxas says of Hopper's own is read as
# they are compiled (csrc/kernels/cuda/sm90/compile.sh), their machine code afterwards, by the cuobjdump that comes with
# Triton where the toolkit has none.
kernels: $(INSTALLED) $(CUDACXX) build/triton/triton
	CUDACXX=$(abspath $(CUDACXX)) $(CMAKE) -S csrc/kernels -B build/kernels -DSTCA_CUDA=ON
	$(BIN)/cmake --build build/kernels --target stca_cuda
	PYTHONPATH=build/triton $(BIN)/python tools/sm90_code.py build/kernels/libstca_cuda.a

# What nvcc made of the attention kernels: registers, instructions of their loops, and the time that follows at the earliest.
counts: kernels
	PYTHONPATH=build/triton $(BIN)/python tools/kernel_counts.py build/kernels

# With GCC, whose sanitizers these are, and valgrind.
sanitize: $(INSTALLED)
	command -v valgrind || apt-get install --yes valgrind
	$(BIN)/python tools/sanitize.py $(SANITIZE)

sanitize-quick: $(INSTALLED)
	$(BIN)/python tools/sanitize.py --quick $(SANITIZE)

cuda-build: $(CUDA_VENV)/cuda/bin/nvcc
	$(CUDA_VENV)/bin/python tools/install.py build
	$(CUDA_VENV)/bin/pip install --quiet $(CUDA_TORCH)
	CUDA_HOME=$(abspath $(CUDA_VENV)/cuda) STCA_CMAKE_ARGS=-DSTCA_CUDA=ON \
	  $(CUDA_VENV)/bin/pip install --quiet --no-build-isolation .
	$(CUDA_VENV)/bin/python tools/cuda_build.py

# With the Python that holds torch: nothing is installed, no network is needed.
gpu:
	$(PYTHON) tools/on_gpu.py

gpu-sanitize:
	$(PYTHON) tools/on_gpu.py --sanitize

# All in build/tune/libstca_tune.so, which needs nothing but a driver.
tune: $(INSTALLED) $(CUDACXX)
	CUDACXX=$(abspath $(CUDACXX)) $(CMAKE) -S csrc/kernels -B build/tune -DSTCA_CUDA=ON -DSTCA_TUNE=ON -DSTCA_CUDA_ARCHS=90a-real
	$(BIN)/cmake --build build/tune

# With the Python that holds torch, and what `make tune` has built: nothing is installed, no network is needed.
gpu-tune:
	$(PYTHON) tools/gpu_tune.py

clean:
	rm -rf build dist *.egg-info stca/*.so $(INSTALLED)

# Not into the environment, where torch would find it.
build/triton/triton: | $(BIN)/python
	$(INSTALL) --no-deps --target build/triton $(TRITON)

$(VENV)/bin/python $(CUDA_VENV)/bin/python:
	$(PYTHON) -m venv $(@:/bin/python=)

$(VENV)/cuda/bin/nvcc $(CUDA_VENV)/cuda/bin/nvcc: %/cuda/bin/nvcc: | %/bin/python
	$*/bin/python tools/install.py nvcc

$(INSTALLED): pyproject.toml setup.py CMakeLists.txt $(NATIVE) | $(BIN)/python
	$(BIN)/python tools/install.py build
	$(BIN)/python -c "import torch" 2>/dev/null || $(INSTALL) $(TORCH)
	$(EDITABLE) '.[test]'
	touch $@

$(LINTERS): pyproject.toml $(INSTALLED)
	$(EDITABLE) '.[lint]'
	touch $@

PYTHON ?= python
BUILD ?= build
CMAKE_FLAGS ?=
ROUNDS ?= 1000
CXX_FILES = $(shell git ls-files 'csrc/*' 'python/*' 'tests/csrc/*' | grep -E '\.(h|cpp|cu)$$')

# A kernel that spills registers ends a build; read when a build folder is first configured.
export CUDAFLAGS = -Xptxas --warn-on-spills,--warning-as-error

.PHONY: build test sanitize host-cuda stress mutants lint format docs bench gpu-check gpu-dry clean

# For development, after `pip install -e '.[dev]'`: rebuilds only what changed and puts the library into the package.
build:
	cmake -S . -B $(BUILD) -G Ninja -DPython_EXECUTABLE=$$(command -v $(PYTHON)) -DCMAKE_INSTALL_PREFIX=. $(CMAKE_FLAGS)
	cmake --build $(BUILD) --target install

test: build
	ctest --test-dir $(BUILD) --output-on-failure
	$(PYTHON) -m pytest tests

# The native tests of the arena, and of the CUDA kernels on the host, under AddressSanitizer with
# UndefinedBehaviorSanitizer, and under ThreadSanitizer.
sanitize:
	for kind in address,undefined thread; do \
	  cmake -S . -B $(BUILD)/sanitize-$$kind -G Ninja -DBIMKERN_CUDA=OFF -DBIMKERN_BRIDGE=OFF -DBIMKERN_SANITIZE=$$kind \
	    -DCMAKE_BUILD_TYPE=None && \
	  cmake --build $(BUILD)/sanitize-$$kind --target arena_tests host_cuda_tests && \
	  ctest --test-dir $(BUILD)/sanitize-$$kind -L 'arena|host_cuda' -j 2 --output-on-failure || exit 1; \
	done

# The torch library that runs the CUDA kernels on the CPU. To debug a kernel by one of its tests, without a GPU:
#   make host-cuda && BIMKERN_BACKEND=host-cuda python -m pytest tests/ops/test_gather_tokens.py -k cpu
host-cuda:
	cmake -S . -B $(BUILD) -G Ninja -DPython_EXECUTABLE=$$(command -v $(PYTHON)) -DBIMKERN_BRIDGE=ON \
	  -DBIMKERN_BRIDGE_HOST_CUDA=ON $(CMAKE_FLAGS)
	cmake --build $(BUILD) --target bimkern_native_host_cuda
	cmake --install $(BUILD) --component host_cuda --prefix .

# A million random operations on an arena, on one of several streams, and with kernels that really run, against oracles;
# ROUNDS random cases of each kernel, CUDA on the host and Triton interpreted; 20 kills of one of two ranks;
# pipelines of four ranks; more of the demo; a run on a million images; real steps of every recipe with micro-batches,
# against estimates; detection and segmentation with and without pre-training.
stress:
	cmake -S . -B $(BUILD)/stress -G Ninja -DBIMKERN_CUDA=OFF -DBIMKERN_BRIDGE=OFF
	cmake --build $(BUILD)/stress --target arena_tests fuzz_host_cuda
	$(BUILD)/stress/test_arena_random 1000000
	$(BUILD)/stress/test_device_random 1000000
	kernels=$(BUILD)/stress/test_device_kernels; test ! -e $$kernels || $$kernels 1000000
	fuzz=$(BUILD)/stress/tests/csrc/host_cuda/fuzz_host_cuda; test ! -e $$fuzz || $$fuzz $(ROUNDS)
	if $(PYTHON) -c 'import triton'; then PYTHONPATH=. $(PYTHON) tests/ops/fuzz_triton.py $(ROUNDS); fi
	BIMKERN_KILLS=20 $(PYTHON) -m pytest -s -o timeout=3600 -o faulthandler_timeout=3600 tests/distributed/test_failures.py -k killed
	BIMKERN_STRESS=1 $(PYTHON) -m pytest tests/distributed/test_pipeline.py -k as_many_ranks
	BIMKERN_STRESS=1 $(PYTHON) -m pytest tests/test_demo.py
	BIMKERN_STRESS=1 $(PYTHON) -m pytest tests/train/test_many_images.py
	BIMKERN_STRESS=1 $(PYTHON) -m pytest tests/train/test_estimate.py -k real_steps
	BIMKERN_STRESS=1 $(PYTHON) -m pytest -s tests/examples/test_pretraining_helps.py

# Puts faults into the kernels and the arena, one at a time: random cases must notice each. WORDS="barrier hog": these
# alone.
mutants:
	$(PYTHON) tests/helpers/mutation.py $(WORDS)

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	clang-format --dry-run --Werror $(CXX_FILES)

format:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
	clang-format -i $(CXX_FILES)

# The manual, as HTML in build/docs; a warning fails it.
docs:
	$(PYTHON) -m sphinx -W --keep-going -q -b html docs $(BUILD)/docs

# ARGS="gather_tokens --device cuda", ARGS="step --all --quick"; without: everything, on the CPU.
bench:
	$(PYTHON) -m bench $(ARGS)

# On a machine with a GPU, offline, under eight minutes: build, tests, sanitizer, bench, training steps; logs in runs/.
gpu-check:
	$(PYTHON) -m bench.gpu_check $(ARGS)

# Without a GPU: registers, shared memory and spills of every kernel on every architecture.
gpu-dry:
	$(PYTHON) -m bench.compiled.cuda_kernels
	$(PYTHON) -m bench.compiled.triton_kernels

clean:
	rm -rf build dist *.egg-info bimkern/_native*.so

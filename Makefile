PYTHON ?= python
CXX_FILES = $(shell git ls-files 'csrc/*' 'python/*' 'tests/csrc/*' | grep -E '\.(h|cpp|cu)$$')

.PHONY: build test lint format bench clean

# For development, after `pip install -e '.[dev]'`: rebuilds only what changed and puts the library into the package.
build:
	cmake -S . -B build -G Ninja -DPython_EXECUTABLE=$$(command -v $(PYTHON)) -DCMAKE_INSTALL_PREFIX=.
	cmake --build build --target install

test: build
	ctest --test-dir build --output-on-failure
	$(PYTHON) -m pytest tests

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	clang-format --dry-run --Werror $(CXX_FILES)

format:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
	clang-format -i $(CXX_FILES)

# Warm malloc: glibc otherwise maps large tensors anew at every call, and the page faults drown what is measured.
bench:
	MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 \
		$(PYTHON) -m pytest bench --benchmark-columns=median,iqr,min,ops --benchmark-sort=name

clean:
	rm -rf build dist *.egg-info bimkern/_native.so

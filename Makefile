# make demo    edit a real photograph and a pose sequence with the shipped bundle (runtime only, no PyTorch)
# make test    install everything, CPU PyTorch included, and run the whole suite
# make cpp     build, test and install the C++ editor and its command line to build/prefix (needs cmake, g++, OpenCV)
# make cpp-checks   clang++, clang-tidy, sanitizers, fuzzing and aarch64 for the C++ editor
# make lint    ruff and mypy
# make clean   remove the environments and all that was built
#
# PYTHON=python3.12       the interpreter to make the environments with (3.10 to 3.13; the demo needs 3.11 or newer)
# TORCH_INDEX=URL         where pip finds CPU builds of PyTorch: the address that PyTorch's "Get Started" page gives for
#                         pip and CPU. Without it pip takes what your configuration offers, on Linux usually a CUDA build.
# ONNXRUNTIME=DIR         for make cpp: a folder with include/ and lib/ of an ONNX Runtime release, instead of fetching them
# TESTS="tests/test_x.py -k name"   what to give to pytest
# TEST_JOBS=2             how many processes run the tests

PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
TESTS ?=
TEST_JOBS ?= 2

DEMO_ENV := .venv-demo
TEST_ENV := .venv
SAMPLE := samples/pose-demo
BUNDLE := samples/bundles/pose-demo
OUT := out

PIP := -m pip --disable-pip-version-check --no-input
RUNTIME_SOURCES := $(shell find ilat_runtime -name '*.py')

ONNXRUNTIME ?= build/onnxruntime
CPP_JOBS ?= 2
CPP := cmake -S ilat_runtime/cpp -DCMAKE_BUILD_TYPE=Release -DILAT_WERROR=ON -DILAT_BUILD_TESTS=ON -DCMAKE_INSTALL_LIBDIR=lib \
	-DILAT_ONNXRUNTIME_INCLUDE=$(abspath $(ONNXRUNTIME))/include

# Whether the C++ editor can be built here; CI demands it with ILAT_REQUIRE_CPP=1.
CPP_HERE := $(or $(filter 1,$(ILAT_REQUIRE_CPP)),$(shell command -v cmake >/dev/null && command -v c++ >/dev/null && \
	test -e /usr/include/nlohmann/json.hpp -a -e /usr/include/doctest/doctest.h -a -e /usr/include/opencv4 && echo 1))

.PHONY: demo test lint cpp cpp-checks clean
.DELETE_ON_ERROR:

demo: $(DEMO_ENV)/installed
	@mkdir -p $(OUT)
	$(DEMO_ENV)/bin/ilat-edit $(SAMPLE)/reference.jpg --bundle $(BUNDLE) --pose $(SAMPLE)/target.json \
		--out $(OUT)/demo.png --compare $(OUT)/demo-sheet.png --force
	$(DEMO_ENV)/bin/ilat-edit $(SAMPLE)/reference.jpg --bundle $(BUNDLE) --poses $(SAMPLE)/sequence.json \
		--fps 10 --out $(OUT)/demo.mp4 --force
	@echo
	@echo "The result:                              $(CURDIR)/$(OUT)/demo.png"
	@echo "Reference, target pose, mask and result: $(CURDIR)/$(OUT)/demo-sheet.png"
	@echo "The pose sequence:                       $(CURDIR)/$(OUT)/demo.mp4"

test: $(TEST_ENV)/installed $(if $(CPP_HERE),cpp)
	@$(if $(CPP_HERE),,echo "NOT TESTED: the C++ editor; docs/cpp.md says what it needs" >&2)
	$(TEST_ENV)/bin/ilat-train fetch pose-model lpips demo-videos
	$(TEST_ENV)/bin/python -m pytest -n $(TEST_JOBS) --dist loadfile $(TESTS)

cpp: $(ONNXRUNTIME)/lib
	$(CPP) -B build/cpp -DILAT_BUILD_SAMPLES=ON
	cmake --build build/cpp -j $(CPP_JOBS)
	ctest --test-dir build/cpp --output-on-failure
	cmake --install build/cpp --prefix build/prefix
	cp -P $(ONNXRUNTIME)/lib/libonnxruntime.so* build/prefix/lib/
	@echo "The library, its headers and cpp-edit:   $(CURDIR)/build/prefix"

cpp-checks: $(TEST_ENV)/installed $(ONNXRUNTIME)/lib
	PYTHON=$(abspath $(TEST_ENV))/bin/python ONNXRUNTIME=$(ONNXRUNTIME) CPP_JOBS=$(CPP_JOBS) tests/cpp/checks.sh

build/onnxruntime/lib:
	PYTHON=$(PYTHON) ilat_runtime/cpp/fetch_onnxruntime.sh build/onnxruntime

lint: $(TEST_ENV)/installed
	$(TEST_ENV)/bin/ruff check .
	$(TEST_ENV)/bin/ruff format --check .
	$(TEST_ENV)/bin/mypy

# Installed as a user would have it, so anew whenever a source of the runtime changes.
$(DEMO_ENV)/installed: pyproject.toml $(RUNTIME_SOURCES)
	test -x $(DEMO_ENV)/bin/python || $(PYTHON) -m venv $(DEMO_ENV)
	$(DEMO_ENV)/bin/python $(PIP) install --quiet .
	touch $@

# PyTorch first: whatever asks for it later finds the CPU build in place.
$(TEST_ENV)/installed: pyproject.toml
	test -x $(TEST_ENV)/bin/python || $(PYTHON) -m venv $(TEST_ENV)
	$(TEST_ENV)/bin/python $(PIP) install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(TEST_ENV)/bin/python $(PIP) install --quiet --editable '.[train,export,rtx,dev]'
	touch $@

clean:
	rm -f $(OUT)/demo.png $(OUT)/demo-sheet.png $(OUT)/demo.mp4
	rm -rf $(DEMO_ENV) $(TEST_ENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

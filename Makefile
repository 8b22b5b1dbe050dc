# make demo   the report on real data            make test   (test-fast: without slow ones; test-full: with long ones)
# make lint   style and types                    make kernels   nvcc compiles every CUDA kernel
# make bench  times on this machine's CPU        make gpu   build, tests and times with $(PYTHON) as it is
#
# The first five set up what they need in $(VENV). Overridable: PYTHON, VENV, TORCH, XFER_CUDA, OUT, PRESET.
PYTHON ?= python3
VENV ?= .venv
# Pinned: the figures in the README and in benchmarks/results were taken with it. Any torch >= 2.11 builds.
TORCH ?= torch==2.13.0
XFER_CUDA ?= auto
PRESET ?= full
export XFER_CUDA

SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed-cuda-$(XFER_CUDA)

.PHONY: demo test test-fast test-full lint format kernels bench gpu clean

demo: OUT ?= demo_report
demo: $(INSTALLED)
	$(BIN)/python -m xferkit demo --out $(OUT) --preset $(PRESET)

test: $(INSTALLED)
	$(BIN)/python -m pytest -q -m "not long"

test-fast: $(INSTALLED)
	$(BIN)/python -m pytest -q -m "not slow and not long"

test-full: $(INSTALLED)
	$(BIN)/python -m pytest -q

lint: $(INSTALLED) $(VENV)/.linters
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc tests/simt -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run -Werror

format: $(VENV)/.linters
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc tests/simt -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format -i

kernels:
	$(PYTHON) tests/simt/compile_kernels.py

bench: OUT ?= benchmarks/results
bench: $(INSTALLED)
	mkdir -p $(OUT)
	$(BIN)/python benchmarks/run.py --op all --device cpu --json $(OUT)/cpu.json
	$(BIN)/python benchmarks/run.py --system man_moe_step --device cpu --json $(OUT)/cpu_step.json

# No venv, no network, no build isolation: for a machine that is given as it is.
gpu: OUT ?= gpu_results
gpu:
	$(PYTHON) benchmarks/gpu.py --out $(OUT)

clean:
	rm -rf build xfercore/*.so *.egg-info python_api/*.egg-info $(VENV)/.installed-*

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "xfercore needs Python 3.11 or newer, and $(PYTHON) is older: make PYTHON=python3.12 ..."; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "no virtual environment could be made: on Debian and Ubuntu, apt install python3-venv"; exit 2; }

$(VENV)/.torch: | $(BIN)/python
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	@touch $@

$(INSTALLED): $(SOURCES) $(VENV)/.torch
	$(BIN)/python -m pip install --quiet --editable '.[demo,test]'
	@rm -f $(VENV)/.installed-* && touch $@

$(VENV)/.linters: pyproject.toml $(VENV)/.torch
	$(BIN)/python -m pip install --quiet $$($(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['lint'])")
	@touch $@

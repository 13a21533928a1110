# Each target makes .venv when it is missing, installs what it needs, and runs. Needed beforehand: Python 3.11
# or newer (with its venv module), make, a C++ compiler for the tests, and a package index that pip can reach.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check --no-input --quiet

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Two targets at once would install into one environment at the same time.
.NOTPARALLEL:
.PHONY: help demo test test-quick test-long lint docs bench gpu-test gpu-test-quick clean

help:
	@echo "make demo        train a filter on a photograph's depth map, draw the result (about 3 minutes)"
	@echo "make test        all tests (about 40 minutes on 2 cores)"
	@echo "make test-quick  the tests that are not marked slow"
	@echo "make test-long   soaks and full sweeps, which the others leave out (some hours)"
	@echo "make lint        ruff and mypy"
	@echo "make docs        build the site into build/site (half a minute)"
	@echo "make bench       time every operator on the CPU, with PyTorch beside it (about 40 minutes)"
	@echo "make gpu-test    tests, sanitizers and benchmarks on a CUDA GPU (stopped after 10 minutes); gpu-test-quick: a part of each"
	@echo "make clean       remove .venv and everything built"

demo: $(VENV)/.has-examples
	$(RUN) examples/joint_upsampling.py

# Two processes: most tests keep one core busy. Each takes over what the other has not come to.
PYTEST = $(RUN) -m pytest --numprocesses 2 --dist worksteal

test: $(VENV)/.has-test $(VENV)/cupy/.made
	$(PYTEST)

test-quick: $(VENV)/.has-test
	$(PYTEST) -m "not slow and not long"

test-long: $(VENV)/.has-test
	$(PYTEST) -m long

lint: $(VENV)/lint/.made
	$(VENV)/lint/bin/python -m ruff check .
	$(VENV)/lint/bin/python -m mypy

docs: $(VENV)/.has-docs,examples
	$(RUN) -m sphinx --builder html --fail-on-warning --keep-going --quiet --doctree-dir build/doctrees docs build/site
	@echo "built: build/site/index.html"

bench: $(VENV)/.has-bench
	$(RUN) -m benchmarks run --peers
	$(RUN) -m benchmarks growth

# In pieces, which benchmarks/gpu.py lists: make gpu-test PIECE="tests streams". RESULTS: a folder other than benchmarks/results.
HAS_CUPY = $(PYTHON) -c 'import cupy, numba, scipy, pytest, hypothesis, pytest_timeout' 2>/dev/null
GPU_TEST = $(if $(PIECE),--piece $(PIECE)) $(if $(RESULTS),--results $(RESULTS))

gpu-test-quick: gpu-test
gpu-test-quick: GPU_TEST += --quick

# DYNARRAY_GPU_REHEARSAL is for the tests, which put a stand-in in the place of CuPy and have no driver.
# A Python that already has CuPy is used as it is; otherwise CuPy goes into .venv (about 2 GB with CUDA's libraries).
gpu-test:
	@test "$$DYNARRAY_GPU_REHEARSAL" = 1 || $(PYTHON) -c 'import ctypes; ctypes.CDLL("libcuda.so.1")' 2>/dev/null \
	    || { echo "gpu-test: no NVIDIA driver on this machine (libcuda.so.1 does not load): nothing was tested"; exit 1; }
	@$(HAS_CUPY) || $(MAKE) --no-print-directory $(VENV)/.has-test,cuda13
	@run="$(PYTHON)"; $(HAS_CUPY) || run="$(RUN)"; set -x; "$$run" -m benchmarks.gpu $(GPU_TEST)

clean:
	rm -rf $(VENV) build dist outputs *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps below live in .venv, so that an environment that lost its interpreter goes with them.
$(RUN):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "dynarray needs Python 3.11 or newer; $(PYTHON) is: $$($(PYTHON) --version 2>&1)"; \
	    echo "Name another one: make PYTHON=python3.12 ..."; exit 1; }
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "$(PYTHON) -m venv failed; on Debian and Ubuntu: apt install python3-venv"; exit 1; }

# An environment of its own: what else .venv happens to hold must not change what mypy says.
$(VENV)/lint/.made: pyproject.toml $(RUN)
	$(RUN) -m venv $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check --no-input --quiet install --editable '.[lint]'
	@touch $@

# CuPy beside the environment and not in it: a test compares its names with those of the stand-in (70 MB).
$(VENV)/cupy/.made: $(VENV)/.has-test
	@$(PIP) install --target $(@D) --upgrade --no-deps --only-binary :all: cupy-cuda13x==14.2.0 \
	    || { mkdir -p $(@D); echo "CuPy is not installed: its names are compared with those recorded"; }
	@touch $@

# One empty file per set of extras that is installed: the second time costs nothing until pyproject.toml changes.
$(VENV)/.has-%: pyproject.toml $(RUN)
	$(PIP) install --editable '.[$*]'
	@touch $@

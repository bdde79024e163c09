# `make` lists what there is to do. Every target that needs the environment sets it up first.

# Another interpreter: `make test PYTHON=python3.12`, or export PYTHON.
PYTHON ?= python3
BIN := .venv/bin

# An environment belongs to one version of one interpreter and to the folder it was made in. Any of these changed:
# it is made anew. pyproject.toml or constraints.txt changed: pip runs again in the one that is there.
KEY := $(shell { $(PYTHON) -c 'import sys; print(sys.version, sys.base_prefix)' && pwd; } 2>/dev/null | cksum | cut -d' ' -f1)
MADE := .venv/.made-$(KEY)
READY := .venv/.ready

# A process for each core. What runs first stays where it began, so most traces are made once; who is done takes over
# from who is not. Files named in ARGS run in one process, which starts sooner than several.
WORKERS = $(if $(findstring .py,$(ARGS)),,-n logical --maxprocesses 8 --dist worksteal)

.DEFAULT_GOAL := help
.PHONY: help setup demo test conformance fuzz sanitize arm mutants versions lint types format bench reproduce docs notebooks wheel freeze clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1	\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

# Tests start processes, and each would compile the package for itself where nothing compiled may be kept.
test conformance sanitize mutants: export PYTHONDONTWRITEBYTECODE =

setup: $(READY)  ## make .venv with elman (editable) and everything that development needs

demo: setup  ## train a language model on real text for a minute, and let it write
	@$(BIN)/elman demo

test: setup  ## run the tests; one file or one test: make test ARGS="tests/test_house.py -k rooms"
	@$(BIN)/python -m pytest $(WORKERS) $(ARGS)

conformance: setup  ## run everything, grids of parameters as a whole: before a release
	@$(BIN)/python -m pytest --conformance $(WORKERS) $(ARGS)

fuzz: setup  ## run random cells every way against a plain loop: make fuzz ARGS="--cells 2000 --minutes 60"
	@$(BIN)/python -m tests.fuzz $(ARGS)

sanitize: setup  ## run the native engine's tests under sanitizers: address, undefined, thread; in minutes: ARGS=--short
	@$(BIN)/python -m tests.sanitize $(ARGS)

arm: setup  ## compile the native engine for ARM, and run its tests in an emulator (Debian); others: ARGS="tests/… -k …"
	@.ci/arm $(ARGS)

mutants: setup  ## break a copy of the package on purpose, fault by fault, and see which test notices: ARGS=plan, ARGS=--list
	@$(BIN)/python -m tests.mutants $(ARGS)

versions:  ## run the tests with other versions: make versions PYTHON=python3.13 TORCH=2.14.1
	@.ci/versions $(PYTHON) $(TORCH) $(ARGS)

lint: setup  ## check style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: setup  ## check types
	@$(BIN)/basedpyright

format: setup  ## mend what ruff can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: setup  ## run the benchmarks
	@$(BIN)/python -m bench $(ARGS)

reproduce: setup  ## train and measure what docs/results.md tells of, in about three hours (ARGS="--data FOLDER")
	@$(BIN)/python -m bench.reproduce $(ARGS)

docs: setup  ## write the site into site/, the lecture run at full size; shorter: make docs ARGS=--small
	@$(BIN)/python docs/build.py $(ARGS)

notebooks: setup  ## write the pages of the lecture as notebooks into build/notebooks; ARGS=--run runs them as well
	@$(BIN)/python docs/build.py notebooks $(ARGS)

# An sdist, and out of it a wheel. From Python 3.12 on it is one for every later version, too (native/python.hpp).
wheel: setup  ## build dist/: an sdist, and a wheel for this machine's system and for Pythons as .venv's
	rm -rf build/wheel && mkdir -p build/wheel dist
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m build --outdir build/wheel -C wheel.py-api=cp312 -C cmake.define.ELMAN_PORTABLE=ON
	@$(BIN)/python -m zipfile -l build/wheel/*.whl | grep -q elman/_native || { \
	  echo "make: the wheel has no native engine; a C++ compiler is needed, GCC or Clang" >&2; exit 1; }
	@rm -f dist/elman-*.tar.gz && cp build/wheel/*.tar.gz dist/
	@if [ "$$(uname -s)" = Linux ]; then PATH="$$PWD/$(BIN):$$PATH" $(BIN)/auditwheel repair build/wheel/*.whl -w dist; \
	  else cp build/wheel/*.whl dist/; fi
	@ls -l dist

freeze: setup  ## write what is installed now into constraints.txt
	@{ sed -n '/^#/p' constraints.txt; \
	   { grep -E '^(nanobind|pathspec|scikit-build-core)==' constraints.txt; \
	     $(BIN)/python -m pip freeze --all --exclude pip --exclude-editable | sed 's/+[a-z0-9.]*$$//'; } | LC_ALL=C sort -f; } > constraints.new
	@mv constraints.new constraints.txt && touch $(READY)

clean:  ## remove the environment, caches and builds; what you trained under runs/ stays
	rm -rf .venv build dist site *.egg-info .pytest_cache .hypothesis .ruff_cache constraints.new
	find elman tests bench -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# The stamps are touched last, so an interrupted setup leaves none and the next call starts again where it must.
$(READY): $(MADE) pyproject.toml constraints.txt CMakeLists.txt $(wildcard native/*.*pp)
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install -e '.[dev]'
	@touch $@

$(MADE):
	@command -v $(PYTHON) >/dev/null || { \
	  echo "make: no '$(PYTHON)' here; elman needs Python 3.11 or newer. Name one: make setup PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: '$(PYTHON)' is $$($(PYTHON) -V 2>&1); elman needs Python 3.11 or newer. Name one: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make: '$(PYTHON)' has no venv module. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@rm -rf .venv
	$(PYTHON) -m venv .venv
	@touch $@

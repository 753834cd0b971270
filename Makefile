# Everything is made in a virtual environment, $(VENV), which the first target that needs it makes.
#
#   make demo     the main job, embedded: needs no network beyond loopback
#   make test     all tests but the slow ones; those in network namespaces need root
#   make slow     the slow tests
#   make test-windows  tests on Windows' own CPython under wine, which is downloaded; a minute or two
#   make wheel-windows  a wheel for Windows on x86-64, in dist/; needs gcc-mingw-w64-x86-64
#   make check    ruff, mypy --strict (for Linux and Windows), import contracts
#   make conformance  the tests of requirements; writes docs/conformance.md
#   make mutants  one fault at a time in a copy of the package: the test of its requirement must fail
#   make sanitize the native tests under ASan and UBSan
#   make fuzz     the C side on inputs that a fuzzer makes, FUZZ_SECONDS (20) for each target; needs clang
#   make bench-quick  tunstack, compiled as users have it, beside other gateways, 3 minutes; needs root
#   make bench    all of it, 40 minutes; writes docs/benchmarks/
#   make bench-shaping  whether shaped links do what was ordered, 15 minutes; writes docs/benchmarks/shaping.*
#   make docs     the documentation as a site, in site/
#   make clean    remove what the others made, the virtual environment included

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
BENCH_ARGS ?=

# Tests outside of namespaces keep no time and share nothing: as many at once as there are processors.
WORKERS ?= --dist worksteal --tx '$(shell nproc 2>/dev/null || echo 1)*popen//python=$(BIN)/python -bb'
# With options of one's own one of the two runs may have nothing to do, which is status 5.
NONE_IS_FINE = $(if $(PYTEST_ARGS),|| [ $$? -eq 5 ])

# What an installation depends on; a stamp for each set of extras lies in the environment.
INPUTS := pyproject.toml setup.py tunstack/native/build_native.py $(wildcard tunstack/native/csrc/*)

# Typed code beside the package; tests are checked by ruff only.
TYPED := tunstack $(if $(wildcard bench/*.py),bench)

.PHONY: demo test test-windows wheel-windows slow check conformance mutants sanitize fuzz bench bench-quick bench-shaping docs clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

define MAKE_VENV
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is missing or older than Python 3.11; set PYTHON=" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || \
	  { echo "$(PYTHON) cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 1; }
endef

INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --quiet

$(VENV)/.with-nothing: $(INPUTS)
	$(MAKE_VENV)
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.with-%: $(INPUTS)
	$(MAKE_VENV)
	$(INSTALL) --editable '.[$*]'
	@touch $@ $(VENV)/.with-nothing

demo: $(VENV)/.with-nothing
	$(BIN)/python -m tunstack.demo

test: $(VENV)/.with-test
	@test "$$(id -u)" = 0 || echo "make test: not root, so tests in network namespaces are skipped; run them with: sudo make test"
	$(BIN)/python -bb -m pytest -m "not slow and not netns" $(WORKERS) $(PYTEST_ARGS) $(NONE_IS_FINE)
	$(BIN)/python -bb -m pytest -m "netns and not slow" $(PYTEST_ARGS) $(NONE_IS_FINE)

test-windows: $(VENV)/.with-test
	$(BIN)/python -m tests.windows.wine $(PYTEST_ARGS)

wheel-windows: $(VENV)/.with-test
	$(BIN)/python -m tests.windows.wheel dist

slow: $(VENV)/.with-test
	@test "$$(id -u)" = 0 || echo "make slow: not root, so tests in network namespaces are skipped; run them with: sudo make slow"
	$(BIN)/python -bb -m pytest -m slow --timeout 1800 $(PYTEST_ARGS)

check: $(VENV)/.with-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict $(TYPED)
	$(BIN)/mypy --strict --platform win32 tunstack
	$(BIN)/lint-imports --no-logo

conformance: $(VENV)/.with-test
	$(BIN)/python -bb -m tests.conformance.matrix

mutants: $(VENV)/.with-test
	$(BIN)/python -m tests.mutants.run

sanitize: $(VENV)/.with-test
	PYTHON=$(BIN)/python tests/native/run_sanitized.sh

fuzz:
	tests/fuzz/fuzz.sh run

# Measured is what an installation gives, the compiled core included, so it is one, in an environment of its own.
BENCH_VENV ?= $(VENV)-bench

$(BENCH_VENV)/.installed: $(INPUTS) $(shell find tunstack -name '*.py')
	$(MAKE) VENV=$(BENCH_VENV) $(BENCH_VENV)/.empty
	@echo "building tunstack as users have it; this takes a minute or two"
	$(BENCH_VENV)/bin/python -m pip install --disable-pip-version-check --quiet '.[bench]'
	@touch $@

$(VENV)/.empty:
	$(MAKE_VENV)
	@touch $@

bench-quick: $(BENCH_VENV)/.installed
	$(BENCH_VENV)/bin/python -m bench all --quick --out build/bench-quick $(BENCH_ARGS)

bench-shaping: $(BENCH_VENV)/.installed
	$(BENCH_VENV)/bin/python -m bench shaping --out docs/benchmarks $(BENCH_ARGS)

bench: $(BENCH_VENV)/.installed
	$(BENCH_VENV)/bin/python -m bench all --out docs/benchmarks $(BENCH_ARGS)

docs: $(VENV)/.with-docs
	$(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) $(BENCH_VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	rm -f tunstack/native/_native.c tunstack/native/*.so tunstack/native/*.o
	find . -name __pycache__ -prune -exec rm -rf {} +

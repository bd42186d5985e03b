# make demo: the whole way on the sample corpus.   make test: the tests.   make help: the rest.
# Everything is installed into $(VENV) through constraints.txt, so that two machines get the same.

VENV ?= .venv
PYTHON ?= python3
PYTEST_ARGS ?=

bin := $(VENV)/bin
pip := $(bin)/python -m pip --quiet --disable-pip-version-check
install := $(pip) install -c constraints.txt --build-constraint constraints.txt
# What the installed package is built from; a change in any of it installs anew.
sources := pyproject.toml $(wildcard CMakeLists.txt) \
	$(shell find src native -type f -not -path '*/__pycache__/*' -not -name '*.so' 2>/dev/null)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test parity test-all native-sanitize native-fuzz lint format docs clean

help:
	@echo 'make demo             install, then the whole way on the sample corpus (minutes)'
	@echo 'make test             install, then the default tests'
	@echo 'make lint             ruff, mypy, floors'
	@echo 'make parity           tests that compare with other programs, and the table of the zoo'
	@echo 'make test-all         every test: slow, parity, sanitizers'
	@echo 'make native-sanitize  build the core with ASan and UBSan, then TSan; native and Python tests'
	@echo 'make native-fuzz      build the fuzz targets with clang, run each for SECONDS (20)'
	@echo 'make format           ruff, in place'
	@echo 'make docs             write the generated parts of the documentation anew'
	@echo 'make clean            remove builds and caches, keep $(VENV)'

demo: $(VENV)/.make
	$(bin)/miudo demo

test: $(VENV)/.test
	$(bin)/python -m pytest -m 'not slow and not parity' $(PYTEST_ARGS)

# The table is printed whatever failed: a failed case has no number in it. MIUDO_ISA=avx2 or portable
# in the environment is the path that is compared.
parity: $(VENV)/.peers $(VENV)/.native
	ZOO_RESULTS=build/zoo.json $(bin)/python -m pytest -m parity $(PYTEST_ARGS); \
	status=$$?; $(bin)/python scripts/zoo_table.py build/zoo.json; exit $$status

test-all: $(VENV)/.peers native-sanitize native-fuzz
	$(bin)/python -m pytest $(PYTEST_ARGS)

native-sanitize: $(VENV)/.test $(VENV)/.native
	PYTHON="$(abspath $(bin))/python" sh scripts/native_sanitize.sh python

native-fuzz: $(VENV)/.native
	PATH="$(abspath $(bin)):$$PATH" sh scripts/native_fuzz.sh $(or $(SECONDS),20)

lint: $(VENV)/.test
	$(bin)/ruff check src tests benchmarks scripts conftest.py
	$(bin)/ruff format --check src tests benchmarks scripts conftest.py
	$(bin)/mypy
	$(bin)/lint-imports

format: $(VENV)/.test
	$(bin)/ruff check --fix src tests benchmarks scripts conftest.py
	$(bin)/ruff format src tests benchmarks scripts conftest.py

docs: $(VENV)/.test
	$(bin)/python scripts/block_types.py
	$(bin)/python scripts/cli_reference.py
	$(bin)/python scripts/preset_table.py
	$(bin)/python scripts/reading_order.py
	$(bin)/python scripts/zoo_table.py

clean:
	rm -rf build dist demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# The stamps below say which set of packages the environment holds.
$(VENV)/.pip: constraints.txt
	test -x $(bin)/python || $(PYTHON) -m venv $(VENV)
	$(pip) install -c constraints.txt --upgrade pip
	touch $@

# The package with what making models takes. Not editable: what is tested is what a user gets.
$(VENV)/.make: $(VENV)/.pip $(sources)
	@echo 'installing into $(VENV): fetches PyTorch, compiles the engine; minutes without a word'
	$(install) '.[make]'
	touch $@

$(VENV)/.test: $(VENV)/.make
	$(install) --group test --group lint
	touch $@

$(VENV)/.native: $(VENV)/.pip
	$(install) --group native
	touch $@

$(VENV)/.peers: $(VENV)/.test
	$(install) --group peers
	touch $@

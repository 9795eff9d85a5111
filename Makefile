# `make demo` and `make test` need Python 3.11 or newer, make, and a package index.
# They use their own virtual environment (.venv), whatever else is active.

PYTHON ?= python3
# An index to take torch from; on Linux, PyTorch's CPU index saves gigabytes of CUDA.
TORCH_INDEX ?=
# The versions to install; `make test CONSTRAINTS=` takes the newest that pyproject.toml allows.
CONSTRAINTS ?= -c constraints.txt
WORKERS ?= 2
VENV   := .venv
PY     := $(VENV)/bin/python
READY  := $(VENV)/.ready
PIP    := $(PY) -m pip --quiet --disable-pip-version-check
# As a folder on sys.path: type checkers do not follow the import hook of a plain editable install.
EDITABLE := --config-settings editable_mode=compat

.PHONY: demo test lint coverage docs fuzz clean

demo: $(READY)
	$(PY) -m pare.cli.demo_page --out demo
	@echo "Look at it: $(CURDIR)/demo/index.html"

# Everything but the slow and the GPU tests, a process per core, then the same comparison as users
# see it.  `make test WORKERS=8` takes eight; each needs 2 GB.
test: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not gpu"
	$(VENV)/bin/pare verify --device cpu

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# What the tests of `make test` run of the code; htmlcov/index.html shows it line by line.
coverage: $(READY)
	$(PY) -m pytest -m "not slow and not gpu" --cov --cov-report=term:skip-covered --cov-report=html

# The documentation site, in site/; a broken link or an unknown name is an error.
docs: $(READY)
	$(PIP) install $(CONSTRAINTS) $(EDITABLE) -e '.[site]'
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo "Read it: $(PY) -m http.server -d site"

# A minute for each parser; needs clang's runtime as atheris brings it (Linux, macOS).
fuzz: $(READY)
	$(PIP) install $(CONSTRAINTS) $(EDITABLE) -e '.[fuzz]'
	$(PY) -m tests.fuzz

clean:
	rm -rf $(VENV) build dist demo site htmlcov .coverage *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# The stamp is written last: an interrupted set-up starts again.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "pare needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PY) -c 'import pip' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(if $(TORCH_INDEX),$(PIP) install --index-url $(TORCH_INDEX) torch $(CONSTRAINTS))
	$(PIP) install $(CONSTRAINTS) $(EDITABLE) -e '.[verify,study,batch,docs,test,dev]'
	@touch $@

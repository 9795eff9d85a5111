# `make demo` and `make test` need Python 3.11 or newer, make, and a package index.
# They use their own virtual environment (.venv), whatever else is active.

PYTHON ?= python3
# An index to take torch from; on Linux, PyTorch's CPU index saves gigabytes of CUDA.
TORCH_INDEX ?=
VENV   := .venv
PY     := $(VENV)/bin/python
READY  := $(VENV)/.ready

.PHONY: demo test lint fuzz clean

demo: $(READY)
	$(PY) -m pare.cli.demo_page --out demo
	@echo "Look at it: $(CURDIR)/demo/index.html"

# Everything but the slow and the GPU tests, then the same comparison as users see it.
test: $(READY)
	$(PY) -m pytest -m "not slow and not gpu"
	$(VENV)/bin/pare verify --device cpu

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# A minute for each parser; needs clang's runtime as atheris brings it (Linux, macOS).
fuzz: $(READY)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	$(PY) -m tests.fuzz

clean:
	rm -rf $(VENV) build dist demo *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# The stamp is written last: an interrupted set-up starts again.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "pare needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PY) -c 'import pip' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(if $(TORCH_INDEX),$(PY) -m pip install --quiet --index-url $(TORCH_INDEX) torch -c constraints.txt)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[verify,study,docs,test,dev]'
	@touch $@

# Each target works on a bare clone: it creates .venv with pinned versions first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE := CMakeLists.txt $(wildcard src/native/*)
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: demo test lint docs bench bench-exact bench-kernels smoke pure clean

demo: $(VENV)/.experiments ## Install, solve a real problem three ways, run LOT, write report/index.html
	$(BIN)/brenier demo

test: $(VENV)/.test ## The whole test suite
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -q

lint: $(VENV)/.dev ## Style, types, floors, spelling
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell src tests docs benchmarks README.md CONTRIBUTING.md CHANGELOG.md

docs: $(VENV)/.docs ## The documentation, gallery executed, warnings are errors
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

smoke: $(VENV)/.experiments ## The smoke preset of every system on the shelf
	$(BIN)/python benchmarks/smoke.py

bench: bench-exact bench-kernels ## Against other libraries; keep the machine quiet

bench-exact: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/exact_simplex.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/exact_lazy.py

bench-kernels: $(VENV)/.test
	$(BIN)/python benchmarks/kernels.py

pure: ## Build as if no compiler were there; the suite must pass on the reference engine
	$(PYTHON) -m venv .venv-pure
	CC=/bin/false CXX=/bin/false .venv-pure/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt '.[test]'
	.venv-pure/bin/python -c "from brenier.kernels.build import native; assert native is None"
	OMP_NUM_THREADS=2 .venv-pure/bin/python -m pytest -q -p no:cacheprovider

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.%: $(VENV)/bin/python pyproject.toml constraints.txt $(NATIVE)
	$(INSTALL) '.[$*]'
	@touch $@

clean:
	rm -rf .venv .venv-pure build dist report docs/_build docs/gallery src/brenier/*.so

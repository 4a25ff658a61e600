# Each target works on a bare clone: it creates .venv with pinned versions first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE := CMakeLists.txt $(wildcard src/native/*)
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

# Small problems: two tests at once with a thread each take half the time of one after the other with two.
# New memory is full of large negative numbers (glibc), so that what nobody has written yet does not pass for zeros.
PYTEST_ENV := OMP_NUM_THREADS=1 MALLOC_PERTURB_=63
SPREAD ?= --numprocesses 2 --dist loadfile

BENCH := .venv-bench
BENCHES := $(addprefix bench-,exact assignment kernels tiny batches large sliced barycentres low-rank adaptation \
  dynamic losses couplings decoding semidiscrete structure entropic)

.PHONY: demo test lint docs bench bench-quick $(BENCHES) smoke sanitize pure clean

demo: $(VENV)/.experiments ## Install, solve a real problem three ways, run LOT, write report/index.html
	$(BIN)/brenier demo

test: $(VENV)/.test ## The whole test suite
	$(PYTEST_ENV) $(BIN)/python -m pytest -q $(SPREAD)

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

bench: $(BENCHES) ## Against other libraries; keep the machine quiet, it takes hours

bench-exact: $(BENCH)/.bench ## What is in build/bench/exact.jsonl does not run again
	$(BENCH)/bin/python benchmarks/exact.py
	OMP_NUM_THREADS=1 $(BENCH)/bin/python benchmarks/exact_simplex.py
	OMP_NUM_THREADS=1 $(BENCH)/bin/python benchmarks/exact_lazy.py

bench-assignment: $(BENCH)/.bench
	$(BENCH)/bin/python benchmarks/assignment.py

bench-kernels: $(BENCH)/.bench
	$(BENCH)/bin/python benchmarks/kernels.py --threads 1 --json results/kernels.json
	$(BENCH)/bin/python benchmarks/kernels.py --threads $$(nproc) --json results/kernels.json

bench-entropic: $(BENCH)/.bench ## The full grid; what is in build/bench/entropic.jsonl does not run again
	$(BENCH)/bin/python benchmarks/entropic.py

bench-quick: $(BENCH)/.bench ## A handful of its cells, under five minutes
	$(BENCH)/bin/python benchmarks/entropic.py --quick --records build/bench/quick.jsonl --out build/bench

bench-tiny: $(BENCH)/.bench
	OMP_NUM_THREADS=1 $(BENCH)/bin/python benchmarks/doubly_stochastic.py

bench-batches: $(BENCH)/.bench
	$(BENCH)/bin/python benchmarks/batches.py

bench-large: $(BENCH)/.bench ## 100,000 and 1,000,000 points in three dimensions
	$(BENCH)/bin/python benchmarks/large.py

bench-low-rank: $(BENCH)/.bench ## Plans of low rank, and bijections
	OMP_NUM_THREADS=1 $(BENCH)/bin/python benchmarks/lowrank.py
	OMP_NUM_THREADS=1 $(BENCH)/bin/python benchmarks/bijection.py

bench-decoding: $(BENCH)/.bench ## Bounds, rules and verification of draft trees, and text of a real model, a few minutes
	$(BENCH)/bin/python benchmarks/decoding.py

bench-sliced: $(BENCH)/.bench ## The line, the circle and slices, under a minute
	$(BENCH)/bin/python benchmarks/sliced.py

bench-adaptation: $(BENCH)/.bench ## The maps of domain adaptation, a few minutes
	OMP_NUM_THREADS=1 $(BENCH)/bin/python benchmarks/adaptation.py

bench-dynamic: $(BENCH)/.bench ## Transport in time on grids, a minute
	OMP_NUM_THREADS=1 $(BENCH)/bin/python benchmarks/dynamic.py

bench-barycentres: $(BENCH)/.bench ## Barycentres of 20 measures of 1,000 points, a few minutes
	$(BENCH)/bin/python benchmarks/barycentres.py

bench-structure: $(BENCH)/.bench ## Gromov-Wasserstein problems, an hour
	$(BENCH)/bin/python benchmarks/structure.py
	$(BENCH)/bin/python benchmarks/structure_large.py

bench-semidiscrete: $(BENCH)/.bench ## 10,000 atoms in the plane, and in 64 dimensions; a few minutes
	OMP_NUM_THREADS=1 $(BENCH)/bin/python benchmarks/semidiscrete.py

bench-losses: $(BENCH)/.bench ## The Sinkhorn divergence and its gradient, and that SamplesLoss is the one of GeomLoss
	$(BENCH)/bin/python benchmarks/losses.py --agree
	$(BENCH)/bin/python benchmarks/losses.py --json results/losses.json

bench-couplings: $(BENCH)/.bench ## Pairs for flow matching, of minibatches and pools, and a training loop
	$(BENCH)/bin/python benchmarks/couplings.py --json results/couplings.json

SANITIZED := .venv-sanitize
sanitize: ## The native engine with address and undefined-behaviour sanitizers, under a part of the tests
	$(PYTHON) -m venv $(SANITIZED)
	$(SANITIZED)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	  --config-settings=cmake.define.BRENIER_SANITIZE=address,undefined --config-settings=install.strip=false \
	  --config-settings=build-dir=build/sanitize '.[test]'
	SANITIZED_PYTHON=$(SANITIZED)/bin/python sh benchmarks/sanitize.sh

# Triton's kernels do not ask for the extension: their interpreter, which is slow, runs with the other suite.
pure: ## Build as if no compiler were there; all but the slow tests must pass on the reference engine
	$(PYTHON) -m venv .venv-pure
	CC=/bin/false CXX=/bin/false .venv-pure/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt '.[test]'
	.venv-pure/bin/python -c "from brenier.kernels.build import native; assert native is None"
	TRITON_INTERPRET=0 $(PYTEST_ENV) .venv-pure/bin/python -m pytest -q -p no:cacheprovider -m "not slow and not gpu" $(SPREAD)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(BENCH)/.bench: benchmarks/requirements.txt benchmarks/constraints.txt pyproject.toml constraints.txt $(NATIVE)
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	  --constraint benchmarks/constraints.txt --requirement benchmarks/requirements.txt --editable '.[data,language]'
	@touch $@

$(VENV)/.%: $(VENV)/bin/python pyproject.toml constraints.txt $(NATIVE)
	$(INSTALL) '.[$*]'
	@touch $@

clean:
	rm -rf .venv .venv-pure $(SANITIZED) $(BENCH) build dist report docs/_build docs/gallery src/brenier/*.so

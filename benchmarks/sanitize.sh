#!/bin/sh
# What `make sanitize` runs: the kernels' tests and some of the fuzz, with the sanitizers' runtime in front of Python's.
# Leaks are not looked for: the interpreter and torch keep what they allocate once.
set -eu
python=${SANITIZED_PYTHON:-python}
runtime="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so) $(gcc -print-file-name=libstdc++.so)"
export OMP_NUM_THREADS=1
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=0:verify_asan_link_order=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1

LD_PRELOAD="$runtime" "$python" -c "from brenier.kernels.build import native; assert native; print(native.__file__)"
LD_PRELOAD="$runtime" "$python" -m pytest -q -p no:cacheprovider tests/kernels/test_simplex.py tests/solvers/exact \
  tests/kernels/test_matrix_kernels.py tests/kernels/test_tiny.py -k "not no_n_by_m"
LD_PRELOAD="$runtime" "$python" benchmarks/fuzz_exact.py --instances 200 --limit 120

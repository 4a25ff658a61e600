"""Importing brenier is light and changes nothing; public names are as announced."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import brenier

_SCRIPT = """
import random, sys, warnings
import numpy, torch
state = lambda: (
    torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), torch.random.get_rng_state().tolist(),
    torch.backends.cuda.matmul.allow_tf32, torch.are_deterministic_algorithms_enabled(), numpy.geterr(),
    str(numpy.random.get_state()), list(warnings.filters), random.getstate(),
)
before = state()
import brenier
assert state() == before, "the import changed a global state"
heavy = {"pandas", "matplotlib", "sklearn", "anndata", "h5py"} & set(sys.modules)
x, y = torch.rand(5, 2, generator=torch.Generator()), torch.rand(6, 2, generator=torch.Generator())
for epsilon in (None, 0.5):
    solution = brenier.solve(x, y, epsilon=epsilon)
    solution.certificate, solution.plan.dense(), solution.potentials, solution.map(x)
    assert state()[:7] == before[:7], "a solve changed a global state of torch or NumPy"
assert not torch.cuda.is_initialized()
print(sorted(heavy))
"""


def test_import_changes_nothing_and_is_light() -> None:
    told_once = "ignore:brenier was installed without its native engine"
    command = [sys.executable, "-W", "error", "-W", told_once, "-c", _SCRIPT]
    out = subprocess.run(command, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert out.stdout.strip() == "[]", "optional packages were imported"


def test_public_names() -> None:
    for info in pkgutil.walk_packages(brenier.__path__, "brenier."):
        if info.name.rpartition(".")[2].startswith("_"):
            continue
        module = importlib.import_module(info.name)
        names = getattr(module, "__all__", [])
        assert len(set(names)) == len(names), info.name
        for name in names:
            assert hasattr(module, name), f"{info.name}.{name}"
            if name != "__version__":
                assert getattr(module, name).__doc__, f"{info.name}.{name} has no docstring"
    wanted = {"solve", "PointCloud", "CostMatrix", "Grid", "Relative", "KL", "Exact", "Solution", "Plan", "Certificate"}
    assert wanted <= set(brenier.__all__)

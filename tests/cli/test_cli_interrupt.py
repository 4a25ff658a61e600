"""Ctrl-C on a long solve: exit code 130, and no file, whole or broken."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

# says so when the work begins, so that the signal comes neither before nor after it
DRIVER = """
import sys
import brenier.solvers.base, brenier.api
from brenier.cli import main

inner = brenier.api.run
def run(*arguments, **options):
    print("solving", flush=True)
    return inner(*arguments, **options)
brenier.api.run = run
main()
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(
    "options",
    [
        ["--epsilon", "relative:0.001", "--tol", "1e-300", "--max-iter", "1000000000"],
        [],  # the network simplex listens too
    ],
    ids=["sinkhorn", "exact"],
)
def test_ctrl_c_leaves_nothing(options: list[str], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n = 1500 if options else 4000
    for name, shift in (("x", 0), ("y", 1)):
        np.save(tmp_path / f"{name}.npy", rng.normal(shift, 1, size=(n, 8)))
    out = tmp_path / "out"
    out.mkdir()
    if not options:
        pytest.importorskip("brenier._native", reason="without the native engine this is slow to start")
    command = [sys.executable, "-c", DRIVER, "solve", "x.npy", "y.npy", *options, "--out", "out/p.npz"]
    process = subprocess.Popen(
        [*command, "--plot", "out/p.png"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "solving\n"
        process.send_signal(signal.SIGINT)
        rest, complaint = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert complaint == "interrupted; what was not finished is not written\n"
    assert rest == ""
    assert list(out.iterdir()) == []

"""Transport in time on grids: tangent velocities of video frames, and geodesics against the exact static solver.

    python benchmarks/dynamic.py [--size 480 640] [--cells 32] [--steps 8 16]

float64 and float32, one thread, the processor's seconds. Frames are smooth random pictures in [0, 1]; the second is the
first one shifted by a fraction of a pixel; rho = mean + 0.05, delta = 4.5 pixels. "flux" is beside SciPy's fast
cosine transforms, "weighted" beside SciPy's sparse LU (on an eighth of the edge lengths, as it fills in). Ratios are
SciPy's seconds over ours.

The second table: the value of `dynamic_transport` over W2^2 of the exact solver on the same cells, at three tolerances.
"""

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import argparse  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402

import numpy as np  # noqa: E402
import scipy.fft  # noqa: E402
import torch  # noqa: E402
from machine import processor  # noqa: E402
from scipy.ndimage import gaussian_filter, shift  # noqa: E402
from scipy.sparse import diags_array, kron  # noqa: E402
from scipy.sparse.linalg import splu  # noqa: E402

from brenier import Grid, solve  # noqa: E402
from brenier.solvers import dynamic_transport, tangent_velocity  # noqa: E402

KAPPA = 0.05


def timed(function, repeat=3):
    function()
    begin = time.process_time()
    for _ in range(repeat):
        result = function()
    return result, (time.process_time() - begin) / repeat


def frames(size):
    picture = gaussian_filter(np.random.default_rng(0).normal(size=size), 4)
    picture = (picture - picture.min()) / np.ptp(picture)
    return picture, shift(picture, (0.3, -0.4), order=3, mode="nearest").clip(0, 1)


def flux(rate):
    """Scipy's way: one pair of cosine transforms."""
    values = [4 * np.sin(np.pi * np.arange(n) / (2 * n)) ** 2 for n in rate.shape]
    phi = scipy.fft.dctn(rate, norm="ortho") / (values[0][:, None] + values[1] + KAPPA)
    phi = scipy.fft.idctn(phi, norm="ortho")
    return np.diff(phi, axis=0), np.diff(phi, axis=1)


def direct(rho, rate):
    """Scipy's way: sparse LU of the weighted equation."""
    n, m = rho.shape

    def difference(k):
        return diags_array([-np.ones(k - 1), np.ones(k - 1)], offsets=[0, 1], shape=(k - 1, k))

    down, right = kron(difference(n), diags_array(np.ones(m))), kron(diags_array(np.ones(n)), difference(m))
    faces = [((rho[1:] + rho[:-1]) / 2).ravel(), ((rho[:, 1:] + rho[:, :-1]) / 2).ravel()]
    matrix = sum(D.T @ diags_array(w) @ D for D, w in zip((down, right), faces)) + diags_array(KAPPA * rho.ravel())
    return splu(matrix.tocsc()).solve(rate.ravel()).reshape(n, m)


def tangents(size):
    print(f"{'':<18} {'ms':>8} {'SciPy':>9} {'ratio':>6} {'iterations':>10} {'residual':>9}")
    for dtype in (torch.float64, torch.float32):
        for mode in ("flux", "weighted"):
            shape = size if mode == "flux" else tuple(k // 8 for k in size)
            for where in {shape, size}:
                first, second = frames(where)
                rho, rate = (torch.from_numpy(t).to(dtype) for t in ((first + second) / 2 + 0.05, second - first))
                found, ours = timed(lambda: tangent_velocity(rho, rate, delta=KAPPA**-0.5, mode=mode))  # noqa: B023
                rival = np.nan
                if where == shape:
                    args = (rate.numpy(),) if mode == "flux" else (rho.double().numpy(), rate.double().numpy())
                    _, rival = timed(lambda: (flux if mode == "flux" else direct)(*args))  # noqa: B023
                name = f"{mode} {where[1]}x{where[0]} {str(dtype)[-2:]}"
                print(f"{name:<18} {1e3 * ours:8.1f} {1e3 * rival:9.1f} {rival / ours:6.1f} {found.n_iter:10d} "
                      f"{float(found.residual):9.1e}", flush=True)  # fmt: skip


def geodesics(n, steps):
    x = torch.arange(n, dtype=torch.float64)

    def blob(u, v, s):
        return torch.outer(*(torch.softmax(-(((x - c) / (s * n)) ** 2) / 2, 0) for c in (u * n, v * n)))

    a, b = blob(0.3, 0.3, 0.08), 0.5 * blob(0.7, 0.4, 0.06) + 0.5 * blob(0.4, 0.75, 0.08)
    exact, seconds = timed(lambda: solve(Grid(n, n), a=a.flatten(), b=b.flatten()), 1)
    print(f"\n{n} x {n} cells, exact W2^2 {float(exact.value):.4f} in {seconds:.2f} s")
    print(
        f"{'steps':>5} {'tol':>8} {'value':>8} {'dual':>8} {'iterations':>10} {'seconds':>8} {'residual':>9} "
        f"{'balance':>9}"
    )
    for T in steps:
        for tol in (1e-2, 1e-3, 1e-4):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                begin = time.process_time()
                path = dynamic_transport(a, b, steps=T, tol=tol)
                seconds = time.process_time() - begin
            value, dual = (float(t) / float(exact.value) for t in (path.value, path.dual_value))
            print(f"{T:5d} {tol:8.0e} {value:8.4f} {dual:8.4f} {path.n_iter:10d} {seconds:8.2f} "
                  f"{float(path.residual):9.1e} {float(path.balance):9.1e}", flush=True)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=[480, 640])
    parser.add_argument("--cells", type=int, default=32)
    parser.add_argument("--steps", type=int, nargs="*", default=[8, 16])
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{processor()}, one thread, torch {torch.__version__}")
    tangents(tuple(options.size))
    geodesics(options.cells, options.steps)


if __name__ == "__main__":
    main()

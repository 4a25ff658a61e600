"""The maps of domain adaptation beside POT's: seconds, objectives and accuracy on digits that were turned.

    python benchmarks/adaptation.py [--points 500] [--angle 20]

The digits of scikit-learn in [0, 1]; other digits, turned and paler, are the target. Squared distances,
divided by their maximum for POT, and by the same number through the strengths for ours. The accuracy is that of the
nearest labelled point on the target. Objectives of the penalised problems are recomputed from the plans in float64.
Seconds are the processor's, one thread, one run in one process; ratios are POT's over ours.
"""

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import argparse  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402

import numpy as np  # noqa: E402
import ot  # noqa: E402
import torch  # noqa: E402
from machine import processor  # noqa: E402
from scipy.ndimage import rotate  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from sklearn.neighbors import KNeighborsClassifier, kneighbors_graph  # noqa: E402

from brenier import PointCloud, Problem  # noqa: E402
from brenier.maps.penalized import ClassMap, LaplacianMap  # noqa: E402
from brenier.maps.plain import EntropicMap, ExactMap  # noqa: E402
from brenier.solvers import ClassNorm, ClassPower, Penalized  # noqa: E402


def digits(n, angle):
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    here, there = order[:n], order[n : 2 * n]
    source, target = images[here] / 16, images[there] / 16
    turned = [rotate(t.reshape(8, 8), angle, reshape=False, order=1).ravel() for t in target]
    return source, labels[here], np.clip(0.8 * np.array(turned) + 0.1, 0, 1), labels[there]


def timed(function):
    begin = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = function()
    return result, time.process_time() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=500)
    parser.add_argument("--angle", type=float, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    x, ys, y, yt = digits(options.points, options.angle)
    top = float(ot.dist(x, y).max())
    labels = torch.from_numpy(ys)
    eps, eta = 0.05, 0.05
    common = {"norm": "max", "tol": 1e-9}

    def penalized(term, strength=eta * top, epsilon=eps * top):
        problem = Penalized.of(Problem.make(PointCloud(x, y), epsilon=epsilon), term, strength)
        return lambda P: float(problem.total(torch.from_numpy(P))) / top

    def linear(P):
        return float((P * ot.dist(x, y)).sum()) / top

    # POT sums over edges, ours are means
    edges = sum(float(kneighbors_graph(z, 3).sum()) / 2 / len(z) ** 2 for z in (x, y)) / 2
    neighbours = LaplacianMap(20 * edges, tol=1e-2, max_iter=300)
    rows = [
        ("exact", ExactMap(), ot.da.EMDTransport(norm="max", max_iter=10_000_000), linear),
        ("entropic", EntropicMap(eps * top), ot.da.SinkhornTransport(reg_e=eps, max_iter=5000, **common), linear),
        ("classes l2", ClassMap(eps * top, eta * top),
         ot.da.SinkhornL1l2Transport(reg_e=eps, reg_cl=eta, max_iter=100, max_inner_iter=5000, **common),
         penalized(ClassNorm(labels))),
        ("classes lp", ClassMap(eps * top, eta * top, norm="lp"),
         ot.da.SinkhornLpl1Transport(reg_e=eps, reg_cl=eta, max_iter=20, max_inner_iter=5000, **common),
         penalized(ClassPower(labels))),
        ("neighbours", neighbours,
         ot.da.EMDLaplaceTransport(reg_lap=20.0, max_iter=300, tol=1e-6),
         penalized(neighbours.term(x, y), 20 * edges, None)),
    ]  # fmt: skip
    print(f"{processor()}, one thread, float64, POT {ot.__version__}, n = {options.points}, {options.angle:g} degrees")
    before = KNeighborsClassifier(1).fit(x, ys).score(y, yt)
    print(f"accuracy without adaptation {before:.3f}")
    print(f"{'':<12} {'ours':>9} {'POT':>9} {'seconds':>8} {'POT':>8} {'ratio':>6} {'accuracy':>8} {'POT':>6}")
    for name, ours, theirs, objective in rows:
        _, mine = timed(lambda: ours.fit(x, ys, y))  # noqa: B023
        _, other = timed(lambda: theirs.fit(Xs=x, ys=ys, Xt=y))  # noqa: B023
        values = [objective(np.asarray(P, dtype=np.float64)) for P in (ours.plan_.dense(), theirs.coupling_)]
        moved = ours.transform(x), theirs.transform(Xs=x)
        scores = [KNeighborsClassifier(1).fit(m, ys).score(y, yt) for m in moved]
        print(
            f"{name:<12} {values[0]:9.6f} {values[1]:9.6f} {mine:8.2f} {other:8.2f} {other / mine:6.1f} "
            f"{scores[0]:8.3f} {scores[1]:6.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()

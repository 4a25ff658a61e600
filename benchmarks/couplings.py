"""Couplings of minibatches and of pools, beside torchcfm, POT and OTT: the cost of the pairs, and the time they take.

    python benchmarks/couplings.py [--sizes 256 1024 8192] [--dims 784 3072] [--libraries ...] [--limit 600]
                                   [--threads 1] [--json results/couplings.json] [--loop-only] [--no-loop]

Noise against Fashion-MNIST (d = 784), and against images of a random network with 64 inputs (d = 3072), float32. Each
library in a process of its own pairs n and n samples; *cost* is the mean squared distance of its pairs, recomputed in
float64, over that of the exact plan; *seconds* are the least of two after one on 64 samples, from tensors to
indices of pairs. torchcfm is the exact sampler of that library; where it is not installed POT's `emd` on squared
distances of torch, which is what it calls, runs in its place. Out of time and not installed are results.

Then the training loop: a network on Fashion-MNIST, batches of 256, with no coupling, with pools of 4,096 coupled
between steps, and with the same in the background of the loader, from the first batch on or with a ramp: seconds, and
the share of them that the loop waited.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path


def samples(n, d):
    """Noise and data, (n, d)."""
    import torch

    generator = torch.Generator().manual_seed(100)
    x = torch.randn(n, d, generator=generator)
    if d == 784:
        from brenier.data import fashion_mnist

        images = torch.from_numpy(fashion_mnist().train)
        index = torch.randperm(len(images), generator=generator)[:n]
        return x, images[index].float().flatten(1) / 127.5 - 1
    hidden = torch.tanh(torch.randn(n, 64, generator=generator) @ torch.randn(64, 256, generator=generator) / 8)
    return x, torch.tanh(hidden @ torch.randn(256, d, generator=generator) / 8)


def exact(x, y):
    from brenier.flows import ExactCoupling

    return ExactCoupling()(x, y).cols


def hierarchical(x, y):
    from brenier.flows import ExactCoupling

    return ExactCoupling(solver="hierarchical")(x, y).cols


def entropic(x, y):
    import torch

    from brenier import Relative
    from brenier.flows import EntropicCoupling

    return EntropicCoupling(Relative(0.01), tol=1e-2)(x, y, generator=torch.Generator().manual_seed(0)).cols


def torchcfm(x, y):
    """Rows are drawn from the plan with replacement there: each row is given its own partner here."""
    import torch

    if find_spec("torchcfm") is not None:
        from torchcfm.optimal_transport import OTPlanSampler

        plan = OTPlanSampler(method="exact").get_map(x, y)
    else:
        import numpy as np
        import ot

        mass = np.full(len(x), 1 / len(x))
        plan = ot.emd(mass, mass, torch.cdist(x, y).square().numpy())
    return torch.as_tensor(plan).argmax(1)


_compiled = {}


def ott(x, y):
    """Sinkhorn at the same epsilon and tolerance as ours, and a draw from each row."""
    import jax
    import jax.numpy as jnp
    import torch
    from ott.geometry import pointcloud
    from ott.solvers import linear

    def pairs(x, y):
        mean = ((x**2).sum(1).mean() + (y**2).sum(1).mean()) - 2 * x.mean(0) @ y.mean(0)
        solved = linear.solve(pointcloud.PointCloud(x, y, epsilon=0.01 * mean), threshold=1e-2)
        return jax.random.categorical(jax.random.PRNGKey(0), jnp.log(solved.matrix + 1e-38), axis=1)

    if x.shape not in _compiled:
        _compiled[x.shape] = jax.jit(pairs)
    found = _compiled[x.shape](jnp.asarray(x.numpy()), jnp.asarray(y.numpy()))
    return torch.from_numpy(jax.device_get(found).copy()).long()


RUNS = {
    "brenier, exact": exact,
    "brenier, hierarchical": hierarchical,
    "brenier, entropic 0.01": entropic,
    "torchcfm (POT)": torchcfm,
    "OTT, entropic 0.01": ott,
}
MODULES = {"torchcfm (POT)": "ot", "OTT, entropic 0.01": "ott"}


def one(library, n, d):
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    run = RUNS[library]
    x, y = samples(n, d)
    run(x[:64], y[:64])
    if library.startswith("OTT"):  # compiles for each shape, and that does not count
        run(x, y)
    best = float("inf")
    for _ in range(2):
        begin = time.perf_counter()
        cols = run(x, y)
        best = min(best, time.perf_counter() - begin)
    cost = float((x.double() - y.double()[cols]).square().sum(1).mean())
    return {"seconds": best, "cost": cost}


def loop(kind, steps):
    """Seconds of a training loop, and how long it waited."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader

    from brenier.flows import CouplingLoader, ExactCoupling, FlowMatching, IndependentCoupling

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)
    data = samples(60_000, 784)[1]
    network = nn.Sequential(nn.Linear(785, 1024), nn.SiLU(), nn.Linear(1024, 1024), nn.SiLU(), nn.Linear(1024, 784))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    loss = FlowMatching()
    coupling = IndependentCoupling() if kind == "no coupling" else ExactCoupling()
    inner = DataLoader(data[: 256 * steps], batch_size=256, shuffle=True)
    background, ramp = kind != "between steps", kind.endswith("ramp")
    loader = CouplingLoader(inner, coupling, pool=16, background=background, ramp=ramp)
    begin, far = time.perf_counter(), 0.0
    for x0, x1, _ in loader:
        value, info = loss(lambda z, t: network(torch.cat([z, t.unsqueeze(1)], 1)), x0, x1)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        far += float(info["displacement"])
    seconds = time.perf_counter() - begin
    stats = loader.stats
    return {"seconds": seconds, "waited": stats.waited, "coupling": stats.seconds, "cost": far / len(loader)}


def child(job, arguments):
    """The record of a run in a process of its own, or why there is none."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    command = [sys.executable, __file__, "--one", json.dumps(job)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=arguments.limit, env=environment)
    except subprocess.TimeoutExpired:
        return {"failed": f"more than {arguments.limit:g} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["killed"])[-1]
        return {"failed": "out of memory" if done.returncode == -9 or "memory" in last.lower() else last[:80]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def tables(arguments):
    print("| n | d | coupling | seconds | time / ours | cost / exact |")
    print("|---|---|---|---|---|---|")
    rows = []
    for d in arguments.dims:
        for n in arguments.sizes:
            first = None
            for library in arguments.libraries:
                row = {"n": n, "d": d, "library": library}
                if find_spec(MODULES.get(library, "brenier")) is None:
                    row["failed"] = "not installed"
                else:
                    row |= child(["one", library, n, d], arguments)
                rows.append(row)
                first = row if first is None and "seconds" in row else first
                text = f"| {n:,} | {d} | {library} | "
                if "failed" in row:
                    text += f"{row['failed']} |"
                else:
                    text += f"{row['seconds']:.4g} s | {row['seconds'] / first['seconds']:.1f} | "
                    text += f"{row['cost'] / first['cost']:.6f} |"
                print(text, flush=True)
    return rows


def loops(arguments):
    print()
    print("| training, pools of 4,096 | seconds | waited for couplings | of all | coupling | mean cost of pairs |")
    print("|---|---|---|---|---|---|")
    rows = []
    for kind in ("no coupling", "between steps", "in the background", "in the background, with a ramp"):
        row = {"loop": kind, **child(["loop", kind, arguments.steps], arguments)}
        rows.append(row)
        if "failed" in row:
            print(f"| {kind} | {row['failed']} |", flush=True)
            continue
        share = row["waited"] / row["seconds"]
        text = f"| {kind} | {row['seconds']:.1f} | {row['waited']:.2f} s | {share:.1%} | {row['coupling']:.2f} s | "
        print(text + f"{row['cost']:.1f} |", flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 1024, 8192])
    parser.add_argument("--dims", type=int, nargs="+", default=[784, 3072])
    parser.add_argument("--libraries", nargs="+", default=list(RUNS), choices=RUNS)
    parser.add_argument("--steps", type=int, default=234)  # one pass through the images
    parser.add_argument("--limit", type=float, default=600.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--loop-only", action="store_true")
    parser.add_argument("--no-loop", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        what, *job = json.loads(arguments.one)
        print(json.dumps({"one": one, "loop": loop}[what](*job)))
        return
    rows = [] if arguments.loop_only else tables(arguments)
    rows += [] if arguments.no_loop else loops(arguments)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""The lazy path never holds n x m numbers: the peak of a process of its own is measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# The kernel's own high-water mark of this process image (unlike ru_maxrss, it does not start at the parent's).
_SCRIPT = """
import sys, torch, brenier
n, what = int(sys.argv[1]), sys.argv[2]
def peak_mb():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(t for t in lines if t.startswith("VmHWM")).split()[1]) / 1024
torch.manual_seed(0)
x, y = torch.randn(n, 3), torch.randn(n, 3)
warm = brenier.PointCloud(x[:9].requires_grad_(), y[:9])
warm.softmin(torch.zeros(9), 1.0).sum().backward()
brenier.solve(x[:9].detach(), y[:9], epsilon=1.0).certificate
before = peak_mb()
if what == "dense":
    brenier.PointCloud(x, y).tile()
elif what == "softmin":
    out = brenier.PointCloud(x, y).softmin(torch.zeros(n), 1.0)
    assert out.shape == (n,) and torch.isfinite(out).all()
elif what == "multiscale":
    solution = brenier.solve(x, y, epsilon=0.02, tol=1e-2, solver="multiscale")
    assert solution.stats["kept_share"] < 0.2
    solution.certificate, solution.linear_value, solution.plan @ y, solution.map()
elif what == "backward":
    x.requires_grad_()
    brenier.PointCloud(x, y, "euclidean").softmin(torch.zeros(n), 1.0).sum().backward()
    assert torch.isfinite(x.grad).all()
else:
    solution = brenier.solve(x, y, epsilon=2.0, tol=1e-2)
    solution.certificate, solution.linear_value, solution.plan @ y, solution.plan.topk(5), solution.map(x[:7])
print(peak_mb() - before)
"""


def _extra_mb(n: int, what: str) -> float:
    out = subprocess.run([sys.executable, "-c", _SCRIPT, str(n), what], capture_output=True, text=True, check=True)
    return float(out.stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the high-water mark from /proc")
@pytest.mark.parametrize(
    ("n", "what"), [(20_000, "softmin"), (20_000, "multiscale"), (6_000, "backward"), (4_000, "solve")]
)
def test_no_n_by_m(n: int, what: str) -> None:
    whole = 4 * n * n / 2**20  # one float32 cost matrix: 1526, 137 and 61 MB
    allowed = {"softmin": whole / 10, "multiscale": whole / 10, "backward": whole, "solve": 2 * whole}[what]
    used = _extra_mb(n, what)
    assert used < allowed, f"{what} of {n} points took {used:.0f} MB, one cost matrix is {whole:.0f} MB"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the high-water mark from /proc")
def test_the_measure_sees_a_matrix() -> None:
    assert _extra_mb(5_000, "dense") > 4 * 5_000**2 / 2**20

"""Cross-task preference alignment: trajectories of two tasks are matched, and labels of pairs are carried over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...._inputs import Kind, check_finite, float_tensor, is_count, is_real, kind_of
from ....costs import Euclidean, as_cost
from ....errors import need, refuse
from ....gromov import gromov_wasserstein

__all__ = [
    "CrossTaskPreferenceAlignment",
    "draw_queries",
    "preference_accuracy",
    "preferences",
    "trajectory_distance",
    "transfer_pairwise",
]

_METRICS = ("euclidean", "cosine", "dtw")
_SOLVERS = ("mirror", "conditional-gradient")


# -- distances between trajectories ------------------------------------------------------------------------------


def trajectory_distance(
    trajs: Any,  # (N, H, d), or N arrays (H_i, d)
    metric: str = "euclidean",
    stride: int = 1,
) -> Any:  # (N, N)
    r"""Distances among the trajectories of one task.

    "euclidean" and "cosine" are between flattened trajectories of one length, with the mean trajectory taken off first:
    it changes no Euclidean distance, and constant coordinates would decide the cosine. "dtw" is dynamic time warping,

    .. math:: \min_{\text{monotone paths}} \sum_{(s, t)} \lVert x_s - y_t \rVert,

    which takes any lengths.

    Args:
        trajs: states, or states and actions, of each step.
        metric: "euclidean", "cosine" or "dtw".
        stride: keep every so many steps.

    Returns:
        Symmetric, with a zero diagonal, in the kind of the trajectories.

    Raises:
        InvalidInput: fewer than two trajectories, different widths, different lengths without "dtw", NaN.

    Complexity: O(N^2 H d) time; "dtw" O(N^2 H^2 d) time and O(N H^2) memory.

    Example:
        >>> import torch
        >>> trajs = torch.tensor([[[0.0], [1.0], [1.0]], [[0.0], [0.0], [1.0]], [[0.0], [1.0], [5.0]]])
        >>> trajectory_distance(trajs)[0].tolist(), trajectory_distance(trajs, "dtw")[0].tolist()
        ([0.0, 1.0, 4.0], [0.0, 0.0, 4.0])
    """
    segments = _segments(trajs, "trajs", stride)
    out = _between(segments, segments, metric)
    return _kind(trajs).array(out.to(segments[0].dtype))


def _kind(trajs: Any) -> Kind:
    return kind_of(trajs[0] if isinstance(trajs, list | tuple) and len(trajs) else trajs)


def _segments(trajs: Any, name: str, stride: int = 1) -> list[Tensor]:
    """N tensors (H_i, d) of one width and dtype, every so many steps of each."""
    if not is_count(stride):
        refuse("stride", "a positive integer", repr(stride))
    if isinstance(trajs, list | tuple):
        out = [float_tensor(t, f"{name}[{i}]").detach() for i, t in enumerate(trajs)]
    else:
        whole = float_tensor(trajs, name).detach()
        if whole.dim() != 3:
            refuse(name, "trajectories (N, H, d)", f"shape {tuple(whole.shape)}")
        out = list(whole)
    if len(out) < 2:
        refuse(name, "at least two trajectories", len(out))
    if any(t.dim() != 2 or not t.numel() for t in out) or len({(t.shape[1], t.dtype) for t in out}) > 1:
        shapes = sorted({tuple(t.shape) for t in out})
        refuse(name, "trajectories (H_i, d) of one width d and one dtype", f"shapes {shapes[:4]}")
    for i, t in enumerate(out):
        check_finite(t, f"{name}[{i}]", "finite coordinates")
    return [t[::stride] for t in out]


def _between(xs: Sequence[Tensor], ys: Sequence[Tensor], metric: str) -> Tensor:
    """Distances between the trajectories of two lists, (M, N) in float64; one list twice is a list with itself."""
    if metric not in _METRICS:
        refuse("metric", "one of " + ", ".join(map(repr, _METRICS)), repr(metric))
    if metric == "dtw":
        return torch.stack([_warped(x, ys) for x in xs]) if xs is not ys else _symmetric(xs)
    lengths = {len(t) for t in (*xs, *ys)}
    if len(lengths) > 1:
        got = f"{min(lengths)} to {max(lengths)} steps"
        refuse("trajectories", f"one length for metric={metric!r}", got, "Resample them, or use metric='dtw'.")
    x, y = (torch.stack([t.double().flatten() for t in ts]) for ts in (xs, ys))
    centre = torch.cat([x, y]).mean(0)
    out = as_cost(metric).block(x - centre, y - centre).clamp(min=0)
    if xs is ys:
        out = (out + out.mT) / 2
        out.fill_diagonal_(0)
    return out


def _symmetric(xs: Sequence[Tensor]) -> Tensor:
    """Time warping among the trajectories of one list: each pair once."""
    out = torch.zeros(len(xs), len(xs), dtype=torch.float64, device=xs[0].device)
    for i in range(len(xs) - 1):
        out[i, i + 1 :] = out[i + 1 :, i] = _warped(xs[i], xs[i + 1 :])
    return out


def _warped(x: Tensor, ys: Sequence[Tensor]) -> Tensor:
    """Dynamic time warping of one trajectory with several, (N,): a sweep over the diagonals of all tables at once."""
    n, lengths = len(x), torch.tensor([len(y) for y in ys], device=x.device)
    padded = torch.nn.utils.rnn.pad_sequence([y.double() for y in ys], batch_first=True)
    m = padded.shape[1]
    cost = Euclidean().block(x.double().expand(len(ys), -1, -1), padded)
    total = cost.new_full((len(ys), n + 1, m + 1), torch.inf)
    total[:, 0, 0] = 0
    for s in range(2, n + m + 1):
        i = torch.arange(max(1, s - m), min(n, s - 1) + 1, device=x.device)
        j = s - i
        before = torch.minimum(torch.minimum(total[:, i - 1, j], total[:, i, j - 1]), total[:, i - 1, j - 1])
        total[:, i, j] = cost[:, i - 1, j - 1] + before
    return total[torch.arange(len(ys), device=x.device), n, lengths]  # what is padded comes later in the table


def draw_queries(
    trajs: Any,  # (N, H, d)
    n: int,
    *,
    n_clusters: int = 2,
    seed: int = 0,
) -> NDArray[np.int64]:  # (n,)
    """Choose trajectories evenly from the clusters of a pool, which are like success and failure as a rule.

    K-means on flattened trajectories; within a cluster the choice is random. Where a cluster is too small, the others
    give more.

    Args:
        trajs: the pool.
        n: how many to choose.
        n_clusters: of K-means.
        seed: of K-means and of the choice.

    Returns:
        indices into the pool, sorted.

    Raises:
        InvalidInput: more than the pool holds, or trajectories of different lengths.
        MissingExtra: scikit-learn is not installed.
    """
    segments = _segments(trajs, "trajs")
    for name, count in (("n", n), ("n_clusters", n_clusters)):
        if not is_count(count) or count > len(segments):
            refuse(name, f"an integer from 1 to the {len(segments)} trajectories of the pool", repr(count))
    if len({len(t) for t in segments}) > 1:
        refuse("trajs", "one length", "several", "Resample them.")
    points = torch.stack([t.flatten() for t in segments]).double().cpu().numpy()
    cluster = need("sklearn.cluster", "pearl", "Drawing queries from clusters")
    labels = cluster.KMeans(n_clusters, n_init=10, random_state=seed).fit_predict(points)
    rng = np.random.default_rng(seed)
    queues = [list(rng.permutation(np.flatnonzero(labels == c))) for c in range(n_clusters)]
    chosen: list[int] = []
    while len(chosen) < n:
        for queue in queues:
            if queue and len(chosen) < n:
                chosen.append(int(queue.pop()))
    return np.array(sorted(chosen), dtype=np.int64)


# -- labels of pairs ---------------------------------------------------------------------------------------------


def preferences(
    returns: Any,  # (N,)
) -> Any:  # (N, N)
    """Labels of all pairs by a known return: 1 where the first is larger, 0 where the second is, 1/2 where they tie.

    Example:
        >>> import numpy as np
        >>> preferences(np.array([3.0, 1.0])).tolist()
        [[0.5, 1.0], [0.0, 0.5]]
    """
    values = float_tensor(returns, "returns")
    if values.dim() != 1:
        refuse("returns", "one number for each trajectory, (N,)", f"shape {tuple(values.shape)}")
    check_finite(values, "returns", "finite returns")
    labels = (values.unsqueeze(1) - values).sign() / 2 + 0.5
    return kind_of(returns).array(labels)


def preference_accuracy(
    labels: Any,  # (N, N)
    returns: Any,  # (N,)
    pairs: Any = None,  # (P, 2)
) -> float:
    """The share of pairs whose label is on the side of the return; labels of 1/2 count half, ties in return not at all.

    Args:
        labels: as `preferences` gives them, or soft.
        returns: of the trajectories.
        pairs: indices of the pairs to count; all when None.

    Raises:
        InvalidInput: shapes that do not fit, or no pair whose returns differ.
    """
    given, true = float_tensor(labels, "labels").double(), float_tensor(preferences(returns), "returns").double()
    if given.shape != true.shape:
        refuse("labels", f"shape {tuple(true.shape)}, one for each pair", f"shape {tuple(given.shape)}")
    if pairs is None:
        first, second = torch.triu_indices(len(true), len(true), 1)
    else:
        first, second = torch.as_tensor(pairs, dtype=torch.long).unbind(-1)
    side, truth = (given.cpu()[first, second] - 0.5).sign(), (true.cpu()[first, second] - 0.5).sign()
    counted = truth != 0
    if not bool(counted.any()):
        refuse("returns", "some that differ", "ties only")
    return float(((side * truth)[counted] / 2 + 0.5).mean())


def transfer_pairwise(
    plan: Any,  # (M, N)
    labels: Any,  # (M, M)
) -> Any:  # (N, N)
    r"""Labels of pairs carried through a plan, each pair of targets the mean over what it is matched with.

    .. math:: \tilde Z = W^\top Z\, W, \qquad W_{ij} = P_{ij} / \textstyle\sum_i P_{ij}.

    Columns of W sum to one, and the diagonal of Z, all 1/2, stays in the sum: so labels keep their range, the two
    orders of a pair still sum to one, and a permutation returns the labels themselves.

    Args:
        plan: masses; each target has some.
        labels: 1 where the first of the pair is preferred, 0 where the second is, 1/2 for ties and unknown ones.

    Raises:
        InvalidInput: shapes that do not fit, labels outside [0, 1] or with Z + Z^T other than 1, a target without mass.

    Source: Liu et al. (2024), arXiv 2306.03615, where the weights are P_ij P_i'j' without the normalisation.

    Example:
        >>> import torch
        >>> plan = torch.tensor([[0.0, 0.5], [0.5, 0.0]])
        >>> transfer_pairwise(plan, torch.tensor([[0.5, 1.0], [0.0, 0.5]])).tolist()
        [[0.5, 0.0], [1.0, 0.5]]
    """
    P, Z = float_tensor(plan, "plan").double(), _labels(labels)
    if P.dim() != 2 or P.shape[0] != len(Z):
        refuse("plan", f"shape ({len(Z)}, N), as the labels are", f"shape {tuple(P.shape)}")
    sums = P.sum(0)
    if not bool((sums > 0).all()):
        refuse("plan", "some mass in each column", f"{int((sums <= 0).sum())} columns without")
    W = P / sums
    dtype = float_tensor(labels, "labels").dtype
    return kind_of(labels).array((W.mT @ Z.to(W) @ W).to(dtype))


def _labels(labels: Any) -> Tensor:
    Z = float_tensor(labels, "labels").detach().double()
    if Z.dim() != 2 or Z.shape[0] != Z.shape[1]:
        refuse("labels", "a square matrix, one entry for each ordered pair", f"shape {tuple(Z.shape)}")
    check_finite(Z, "labels", "finite labels", "Use 1/2 for what is unknown.")
    if bool((Z < 0).any()) or bool((Z > 1).any()):
        refuse("labels", "entries in [0, 1]", f"a range of {float(Z.min()):g} to {float(Z.max()):g}")
    worst = float((Z + Z.mT - 1).abs().max())
    if worst > 1e-6:
        refuse("labels", "Z + Z^T = 1, and 1/2 on the diagonal", f"{worst:.3g} off", "Use 1/2 for what is unknown.")
    return Z


# -- the alignment -----------------------------------------------------------------------------------------------


class CrossTaskPreferenceAlignment:
    r"""Match the trajectories of two tasks by the distances inside each, and carry labels of pairs over.

    With C and D the distances among source and target trajectories, each divided by its maximum, the plan minimises

        sum_ii'jj' (C_ii' - D_jj')^2 P_ij P_i'j' + epsilon KL(P | a ⊗ b),    a = 1/M, b = 1/N,

    from several starts, of which the one with the least objective is kept; the labels go through `transfer_pairwise`.
    Nothing of the target is labelled, so a task whose good and bad trajectories look like mirror images may be matched
    the wrong way round, and then all labels flip.

    Args:
        epsilon: entropic strength, in units of the scaled distances squared.
        metric: of `trajectory_distance`: "euclidean", "cosine" or "dtw".
        stride: keep every so many steps.
        n_restarts: starts: a ⊗ b, the plan of the third lower bound, then random vertices.
        solver: "mirror" (entropic, the paper's) or "conditional-gradient" (without entropy: epsilon plays no part).
        alpha: weight of structure against a distance between trajectories of both tasks, which then share their
            observations: 1 ignores it, 0 is plain transport.
        tol, max_iter: of the solver, for each start.
        seed: of random starts.

    Attributes:
        plan_: (M, N), in the kind of the source.
        gw_: the value of the plan without entropy, sum (C - D)^2 P P.
        solution_: the `GromovSolution`, with its certificate and the values of all starts.
        labels_: (N, N), what was last transferred.

    Raises:
        InvalidInput: an unknown option, fewer than two trajectories, NaN, trajectories that are all alike, tasks of
            different widths with alpha < 1, bad labels.

    Complexity: that of distances, O((M^2 + N^2) H d), and O(M N (M + N)) for each step of each start, which run one
    after the other.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> source = torch.randn(6, 10, 3, generator=generator, dtype=torch.float64)
        >>> order = torch.tensor([4, 1, 0, 5, 2, 3])
        >>> target = source[order] @ torch.linalg.qr(torch.randn(3, 3, generator=generator).double())[0] + 1
        >>> labels = preferences(source.sum((1, 2)))
        >>> aligned = CrossTaskPreferenceAlignment(solver="conditional-gradient").fit(source, target)
        >>> float((aligned.transfer(labels) - labels[order][:, order]).abs().max()) < 1e-9
        True
    """

    plan_: Any
    gw_: float
    solution_: Any
    labels_: Any

    def __init__(
        self,
        epsilon: float = 5e-3,
        metric: str = "euclidean",
        *,
        stride: int = 1,
        n_restarts: int = 5,
        solver: str = "mirror",
        alpha: float = 1.0,
        tol: float = 1e-6,
        max_iter: int = 1000,
        seed: int = 0,
    ) -> None:
        if not (is_real(epsilon) and 0 < epsilon < float("inf")):
            refuse("epsilon", "a positive finite number", repr(epsilon))
        if not is_count(n_restarts):
            refuse("n_restarts", "a positive integer", repr(n_restarts))
        if solver not in _SOLVERS:
            refuse("solver", "one of " + ", ".join(map(repr, _SOLVERS)), repr(solver))
        if not (is_real(alpha) and 0 <= alpha <= 1):
            refuse("alpha", "a number in [0, 1]", repr(alpha))
        self.epsilon = epsilon
        self.metric = metric
        self.stride = stride
        self.n_restarts = n_restarts
        self.solver = solver
        self.alpha = alpha
        self.tol = tol
        self.max_iter = max_iter
        self.seed = seed

    def fit(
        self,
        source: Any,  # (M, H, d), or M arrays (H_i, d)
        target: Any,  # (N, K, e), or N arrays (K_j, e)
    ) -> Self:
        """Find the plan between the trajectories of two tasks."""
        xs, ys = _segments(source, "source", self.stride), _segments(target, "target", self.stride)
        ys = [y.to(xs[0].device) for y in ys]
        C, D = (_scaled(_between(ts, ts, self.metric), name) for ts, name in ((xs, "source"), (ys, "target")))
        options: dict[str, Any] = {}
        if self.alpha < 1:
            if xs[0].shape[1] != ys[0].shape[1]:
                got = f"{xs[0].shape[1]} and {ys[0].shape[1]} coordinates"
                refuse("source and target", "shared observations for alpha < 1", got, "Use alpha=1.")
            options = {"features": _scaled(_between(xs, ys, self.metric), "source and target"), "alpha": self.alpha}
        solution = gromov_wasserstein(
            C,
            D,
            cost="precomputed",
            epsilon=self.epsilon if self.solver == "mirror" else None,
            solver=self.solver,
            starts=self.n_restarts,
            tol=self.tol,
            max_iter=self.max_iter,
            generator=torch.Generator().manual_seed(self.seed),
            **options,
        )
        self.plan_ = _kind(source).array(solution.plan.dense())
        self.gw_ = float(solution.structure_value)
        self.solution_ = solution
        self.__dict__.pop("labels_", None)
        return self

    def transfer(
        self,
        labels: Any,  # (M, M)
    ) -> Any:  # (N, N)
        """Labels of the pairs of targets, from those of the pairs of sources; see `transfer_pairwise`."""
        if not hasattr(self, "plan_"):
            refuse("transfer", "a plan", "none", "Call fit first.")
        self.labels_ = transfer_pairwise(self.plan_, labels)
        return self.labels_

    def confidence(self) -> Any:
        """|Z - 1/2| of the labels last transferred, (N, N), in [0, 1/2]."""
        if not hasattr(self, "labels_"):
            refuse("confidence", "transferred labels", "none", "Call transfer first.")
        return abs(self.labels_ - 0.5)


def _scaled(distance: Tensor, name: str) -> Tensor:
    """Divided by the maximum, without which epsilon would have no meaning."""
    largest = float(distance.max())
    if largest == 0:
        refuse(name, "trajectories that differ", "all alike")
    return distance / largest

"""Transport maps as networks: any architecture and any cost, by the Monge gap."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._inputs import is_count, is_real
from ..costs import Cost, InnerProductCost, as_cost
from ..errors import refuse
from ..geometry import PointCloud
from ..losses import monge_gap, sinkhorn_divergence
from ..problem import Relative
from ..solvers import GaussianStart, Sinkhorn
from .training import Data, NeuralMap

__all__ = ["MongeGapEstimator", "MongeMap", "conservative_penalty", "mlp"]

Schedule = float | Callable[[int], float]
"""A number, or a function of the iteration."""

_SCALE_POINTS = 1024  # of each side, for the mean costs that `Relative` multiplies


# -- networks ------------------------------------------------------------------------------------------------


def mlp(sizes: Sequence[int], activation: Callable[[], nn.Module] = nn.GELU) -> nn.Sequential:
    """Linear layers of these sizes, from input to output, with activations between them."""
    layers: list[nn.Module] = []
    for k, (before, after) in enumerate(itertools.pairwise(sizes)):
        if k:
            layers.append(activation())
        layers.append(nn.Linear(before, after))
    return nn.Sequential(*layers)


class MongeMap(nn.Module):
    r"""A map from R^d to R^d as a perceptron, in one of three forms.

    .. math:: T(x) = F(x), \qquad T(x) = x + F(x), \qquad T(x) = x - \nabla h^*(F(x))

    The first is plain, the second residual, and begins near the identity. The third is the form that optimal maps have
    for a cost h(x - y) with h strictly convex, where F is the gradient of a potential (`conservative_penalty` asks for
    that). With `sphere` the image is divided by its norm.

    Args:
        dim: d.
        hidden: sizes of the hidden layers.
        residual: of the first two forms, the second.
        structured: the cost of the third form, as for `solve`; None is one of the others.
        sphere: map to the unit sphere.
        activation: makes the layers between the linear ones.

    Raises:
        InvalidInput: sizes that are not positive integers, or a cost that is not h(x - y) with h strictly convex.

    Example:
        >>> import torch
        >>> x = torch.randn(5, 3)
        >>> MongeMap(3)(x).shape, bool(torch.allclose(MongeMap(3, sphere=True)(x).norm(dim=-1), torch.ones(5)))
        (torch.Size([5, 3]), True)

    Source: Uscidda & Cuturi (2023), The Monge gap; Gangbo & McCann (1996), The geometry of optimal transportation (the
    third form).
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (128, 64, 64),
        *,
        residual: bool = True,
        structured: str | Cost | None = None,
        sphere: bool = False,
        activation: Callable[[], nn.Module] = nn.GELU,
    ) -> None:
        super().__init__()
        for size in (dim, *hidden):
            if not is_count(size):
                refuse("dim and hidden", "positive integers", repr(size))
        self.residual, self.sphere = residual, sphere
        self.ground = None if structured is None else as_cost(structured)
        if self.ground is not None:
            self.ground.check(dim)
            self.ground.conjugate_gradient(torch.zeros(1, dim))  # refuses what has none
        self.layers = mlp((dim, *hidden, dim), activation)

    def field(self, x: Tensor) -> Tensor:
        """F at points (..., d)."""
        out: Tensor = self.layers(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Where points (..., d) go."""
        moved = self.field(x)
        if self.ground is not None:
            moved = x - self.ground.conjugate_gradient(moved)
        elif self.residual:
            moved = x + moved
        return nn.functional.normalize(moved, dim=-1) if self.sphere else moved


def conservative_penalty(
    function: Callable[[Tensor], Tensor],
    x: Tensor,  # (n, d)
    *,
    probes: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Estimate how far a vector field is from being a gradient.

    .. math:: \frac1n \sum_i \lVert J F(x_i) - J F(x_i)^\top \rVert_F^2
        = \mathbb E_v \frac1n \sum_i \lVert J F(x_i)\, v - J F(x_i)^\top v\rVert^2

    with signs v drawn at random: one product with the Jacobian and one with its transpose each. It is zero for
    gradients, and differentiable in the parameters of F.

    Args:
        function: F, from (n, d) to (n, d), row by row.
        x: points, constants here.
        probes: how many v.
        generator: draws them.

    Raises:
        InvalidInput: probes that are not a positive integer, or images of another shape.

    Complexity: three passes through F for each probe.

    Example:
        >>> import torch
        >>> J = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        >>> float(conservative_penalty(lambda x: x @ J.T, torch.zeros(4, 2)).detach())  # ||J - J^T||^2 = 4 + 4
        8.0

    Source: Uscidda & Cuturi (2023), The Monge gap; Chao et al. (2023), On investigating the conservative property of
    score-based generative models; Hutchinson (1989), A stochastic estimator of the trace.
    """
    if not is_count(probes):
        refuse("probes", "a positive integer", repr(probes))
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        image = function(x)
        if image.shape != x.shape:
            refuse("function", f"images of shape {tuple(x.shape)}, as the points have", f"{tuple(image.shape)}")
        total = x.new_zeros(())
        for _ in range(probes):
            v = 2 * torch.randint(0, 2, x.shape, generator=generator, device=x.device).to(x) - 1
            u = v.clone().requires_grad_()
            (transposed,) = torch.autograd.grad(image, x, u, create_graph=True)  # J^T u, linear in u
            (product,) = torch.autograd.grad(transposed, u, v, create_graph=True)  # so that its adjoint is J
            total = total + (product - transposed).square().sum(-1).mean()
        return total / probes


# -- the estimator -------------------------------------------------------------------------------------------


class MongeGapEstimator(NeuralMap):
    r"""Learn an optimal map between two clouds for any cost, with any network, by the Monge gap.

    .. math:: \min_\theta\; \Delta(T_\theta{}_\# \mu, \nu) + \lambda\, M^c_\mu(T_\theta)
        + \lambda_{\text{cons}}\, \mathbb E_\mu \lVert J F_\theta - J F_\theta^\top \rVert_F^2

    The first term, a Sinkhorn divergence unless another loss is given, makes T send mu to nu; there are many such maps.
    The second, the Monge gap, is zero for those that are optimal to their own image. So the sum is zero for the optimal
    map, and for no other. Each iteration draws a batch of either side, and takes the gap on that of the source.

    Points should be on one scale (standardise them): the step length, and the bandwidths of `evaluate`, are for that.

    Args:
        cost: of the map, as for `solve`.
        lam: the weight of the gap, or a function of the iteration. Zero is for ablations: a map of any kind.
        lam_cons: the weight of the last term, for structured maps.
        epsilon: of the gap, in cost units, or relative to the mean cost between source and target; None is
            `Relative(0.01)`.
        epsilon_fit: of the Sinkhorn divergence, in units of the squared distance, or relative to the mean of that
            within the target; None is `Relative(0.1)`.
        loss: another first term, a function of (T(x), y) that gives a number, such as `brenier.losses.energy_distance`.
        network: another network than the one below, from (n, d) to (n, d); a copy of it is trained.
        hidden, residual, sphere: of the network, as for `MongeMap`.
        structured: give it the form of an optimal map for the cost: x - grad h*(F(x)).
        max_iter: iterations.
        batch_size: points of either side in one; all where a cloud has fewer.
        lr: step length of Adam.
        tol: marginal error that the solves of an iteration stop at.
        early_stopping: hold a `validation_fraction` of both clouds out, look at the loss on these each `check_every`
            iterations, stop when `patience` looks have seen no new minimum, and keep the best network.
        validation_fraction, patience: see there.
        check_every: iterations between two looks, and between two checkpoints.
        checkpoint: a file that is written on the way; where it exists, a fit of the same data and parameters goes on
            from it, with the numbers that it would have had. A larger `max_iter` makes a longer fit of it.
        timeout: seconds after which the training ends.
        progress: show a progress bar.
        device: where networks are trained.
        seed: of the start, the batches and the split.

    Attributes:
        network_: the map, a module that takes and returns tensors (n, d).
        history_: "loss", "fit" and "gap" (NaN where its weight is zero) of each iteration, "conservative" if asked
            for, and "held_out".
        epsilon_, epsilon_fit_: in cost units.
        n_iter_, n_features_in_: iterations, d.

    Raises:
        InvalidInput: clouds or parameters that break a rule.
        ValueError: what scikit-learn refuses.
        NotConvergedWarning: where a solve of an iteration did not reach `tol`.

    Complexity: an iteration is four entropic problems of batch_size points. O(n d) for a new point.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(500, 2))
        >>> found = MongeGapEstimator(hidden=(32,), max_iter=30, lr=3e-2).fit(X, X + [2, 0])
        >>> moved = found.transform(X)
        >>> bool(np.abs(moved - X - [2, 0]).mean() < 0.5), sorted(found.evaluate(X, X + [2, 0]))
        (True, ['displacement', 'exact_gap', 'mmd', 'sinkhorn_divergence'])

    Source: Uscidda & Cuturi (2023), The Monge gap: a regularizer to learn all transport maps, ICML 2023.
    """

    _fitted: tuple[str, ...] = ("epsilon_", "epsilon_fit_")

    def __init__(
        self,
        cost: str | Cost | Callable[[Tensor, Tensor], Tensor] = "sqeuclidean",
        lam: Schedule = 1.0,
        lam_cons: float = 0.0,
        epsilon: float | Relative | None = None,
        epsilon_fit: float | Relative | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        network: nn.Module | None = None,
        hidden: Sequence[int] = (128, 64, 64),
        residual: bool = True,
        structured: bool = False,
        sphere: bool = False,
        max_iter: int = 2000,
        batch_size: int = 256,
        lr: float = 1e-3,
        tol: float = 1e-3,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        patience: int = 5,
        check_every: int = 100,
        checkpoint: str | Path | None = None,
        timeout: float | None = None,
        progress: bool = False,
        device: str = "cpu",
        seed: int = 0,
    ) -> None:
        self.cost = cost
        self.lam = lam
        self.lam_cons = lam_cons
        self.epsilon = epsilon
        self.epsilon_fit = epsilon_fit
        self.loss = loss
        self.network = network
        self.hidden = hidden
        self.residual = residual
        self.structured = structured
        self.sphere = sphere
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.lr = lr
        self.tol = tol
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.check_every = check_every
        self.checkpoint = checkpoint
        self.timeout = timeout
        self.progress = progress
        self.device = device
        self.seed = seed

    def _check(self) -> None:
        super()._check()
        as_cost(self.cost)
        for name in ("lam", "lam_cons"):
            value = getattr(self, name)
            if not ((name == "lam" and callable(value)) or (is_real(value) and 0 <= value < math.inf)):
                refuse(name, "a finite number >= 0" + (", or a function of the iteration" if name == "lam" else ""),
                       repr(value))  # fmt: skip
        for name in ("epsilon", "epsilon_fit"):
            value = getattr(self, name)
            if not (value is None or isinstance(value, Relative) or (is_real(value) and 0 < value < math.inf)):
                refuse(name, "a positive number, Relative(fraction) or None", repr(value))
        if self.lam_cons and not (self.structured or hasattr(self.network, "field")):
            refuse("lam_cons", "0, as the map has no field F", repr(self.lam_cons), "Use structured=True.")

    def _build(self, d: int) -> nn.Module:
        if self.network is not None:
            return copy.deepcopy(self.network)
        ground = as_cost(self.cost) if self.structured else None
        return MongeMap(d, self.hidden, residual=self.residual, structured=ground, sphere=self.sphere)

    def _optimizers(self, network: nn.Module) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(network.parameters(), lr=self.lr)]

    def _prepare(self, data: Data) -> None:
        x, y = (points.double() for points in data.some(_SCALE_POINTS))
        self.epsilon_ = _in_cost_units("epsilon", self.epsilon, Relative(0.01), PointCloud(x, y, self.cost))
        geometry = PointCloud(y, y, self._cost_fit())
        self.epsilon_fit_ = _in_cost_units("epsilon_fit", self.epsilon_fit, Relative(0.1), geometry)

    def _cost_fit(self) -> str | Cost | Callable[[Tensor, Tensor], Tensor]:
        """Of the Sinkhorn divergence, whatever the cost of the map."""
        return "sqeuclidean"

    def _fit_term(self, moved: Tensor, y: Tensor) -> Tensor:
        if self.loss is None:
            cost = self._cost_fit()
            return sinkhorn_divergence(moved, y, cost=cost, epsilon=self.epsilon_fit_, tol=self.tol).value
        return torch.as_tensor(self.loss(moved, y)).mean()

    def _gap_term(self, x: Tensor, moved: Tensor) -> Tensor:
        # batches are fresh, and their maps nearly optimal after a while: potentials of Gaussians are near; and at this
        # tolerance some dozen iterations cost less than the first of Newton's method
        inner = isinstance(as_cost(self.cost), InnerProductCost)
        solver = Sinkhorn(start=GaussianStart()) if inner else Sinkhorn()
        return monge_gap(x, moved, cost=self.cost, epsilon=self.epsilon_, solver=solver, tol=self.tol)

    def _iterate(
        self, network: nn.Module, optimizers: list[torch.optim.Optimizer], data: Data, iteration: int
    ) -> dict[str, float]:
        optimizers[0].zero_grad(set_to_none=True)
        measured = self._descend(network, data, iteration)
        optimizers[0].step()
        return measured

    def _descend(self, network: nn.Module, data: Data, iteration: int, share: float = 1.0) -> dict[str, float]:
        """Add so much of the gradient on a batch; numbers for the history."""
        x, y, *context = data.draw()
        moved = network(x, *context)
        fit = total = self._fit_term(moved, y)
        lam, gap = float(self.lam(iteration) if callable(self.lam) else self.lam), math.nan
        if lam:
            term = self._gap_term(x, moved)
            total, gap = total + lam * term, float(term.detach())
        measured = {"loss": math.nan, "fit": float(fit.detach()), "gap": gap}
        if self.lam_cons:
            field_of: Any = network.field
            term = conservative_penalty(field_of, x, generator=data.generator)
            total = total + self.lam_cons * term
            measured["conservative"] = float(term.detach())
        (share * total).backward()  # type: ignore[no-untyped-call]
        return {**measured, "loss": float(total.detach())}

    @torch.no_grad()
    def _moved(self, network: nn.Module, x: Tensor, *context: Tensor) -> Tensor:
        out: Tensor = network(x, *context)
        return out

    def _held_out(self, network: nn.Module, *held: Tensor) -> float:
        with torch.no_grad():
            x, y, *context = held
            moved = network(x, *context)
            lam = float(self.lam(self.max_iter) if callable(self.lam) else self.lam)
            total = self._fit_term(moved, y)
            return float(total + lam * self._gap_term(x, moved) if lam else total)


def _in_cost_units(name: str, epsilon: float | Relative | None, default: Relative, geometry: PointCloud) -> float:
    epsilon = default if epsilon is None else epsilon
    if not isinstance(epsilon, Relative):
        return float(epsilon)
    mean = float(geometry.mean_cost())
    if not 0 < mean < math.inf:
        refuse(name, "a mean cost that is positive", f"{mean:g}", "Give epsilon as a number, in cost units.")
    return epsilon.fraction * mean

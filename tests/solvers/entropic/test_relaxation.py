import pytest
import torch

import brenier
from brenier import InvalidInput, Relative, solve
from brenier.solvers import Anderson, OverRelaxation, Plain, Sinkhorn


def clouds(n=120, m=90, d=3, dtype=torch.float64, batch=()):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(*batch, n, d, generator=generator, dtype=dtype)
    y = torch.randn(*batch, m, d, generator=generator, dtype=dtype) + 0.5
    return x, y


@pytest.mark.parametrize("part", [OverRelaxation(), Anderson(), Anderson(below=float("inf"))], ids=str)
@pytest.mark.parametrize("marginals", [brenier.Exact(), brenier.KL(2.0)], ids=["exact", "kl"])
def test_same_solution_in_fewer_iterations(marginals, part):
    x, y = clouds()
    options = {"epsilon": Relative(0.005), "marginals": marginals}
    exact = isinstance(marginals, brenier.Exact)
    plain = solve(x, y, solver="sns" if exact else Sinkhorn(relaxation=Plain()), tol=1e-12, **options)
    fast = solve(x, y, solver=Sinkhorn(tol=1e-10, relaxation=part), **options)
    assert plain.status.ok
    assert fast.status.ok
    assert float(fast.value) == pytest.approx(float(plain.value), rel=1e-9)
    if exact:  # soft marginals converge at a fixed rate by themselves; the plain iteration needs 30,000 to 1e-9
        assert fast.stats["n_iter"] < 5_000


def test_mixing_solves_what_is_linear():
    """Two combined images of an affine map in one dimension, three in two: its fixed point."""
    A, fixed = torch.diag(torch.tensor([0.9, 0.5, -0.3])).double(), torch.tensor([1.0, 2.0, 3.0]).double()
    part = Anderson(depth=3, below=float("inf"))
    f = torch.zeros(3, dtype=torch.float64)
    state = part.init(f)
    for _ in range(6):
        new = fixed + A @ (f - fixed)
        error = (new - f).abs().sum()
        state = part.next(state, error)
        f, state = part.mixed(state, f, new, torch.ones(3).double(), error)
    assert torch.allclose(f, fixed, atol=1e-6)


def test_mixing_is_least_squares_by_the_masses():
    """The kept products are those of the kept differences, and the residual that is left is the smallest."""
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(2, 30, 30, generator=generator).double() / 8
    part, masses = Anderson(depth=4, below=float("inf")), torch.rand(2, 30, generator=generator).double()
    f = torch.randn(2, 30, generator=generator).double()
    state, iterates = part.init(f), []
    for k in range(8):
        new = (A @ f.unsqueeze(-1)).squeeze(-1)
        iterates.append((f, new))
        error = torch.full((2,), 0.5**k)
        error[1] = 1e3 if k == 3 else error[1]  # the second problem drops what it had
        state = part.next(state, error)
        f, state = part.mixed(state, f, new, masses, error)
    scale = (masses / masses.sum(-1, keepdim=True)).sqrt()
    for item, kept in enumerate((4, 3)):
        fs, images = (torch.stack([pair[i][item] for pair in iterates[-kept - 1 :]]) for i in (0, 1))
        residuals = (images - fs) * scale[item]
        R, dF = residuals.diff(dim=0), images.diff(dim=0)
        torch.testing.assert_close(state.gram[item, -kept:, -kept:], R @ R.mT)
        gamma = torch.linalg.lstsq(R.mT, residuals[-1].unsqueeze(-1)).solution.squeeze(-1)
        torch.testing.assert_close(f[item], images[-1] - gamma @ dF, rtol=1e-5, atol=1e-6)


def test_an_iterate_that_is_much_worse_is_dropped():
    part = Anderson(below=float("inf"))
    f = torch.zeros(2, dtype=torch.float64)
    state = part.init(f)
    images = [torch.tensor([1.0, 0.0]), torch.tensor([1.5, 0.2]), torch.tensor([7.0, 7.0])]
    for error, image in zip((1.0, 0.9, 100.0), images):
        state = part.next(state, torch.tensor(error))
        f, state = part.mixed(state, f, image.double(), torch.ones(2).double(), torch.tensor(error))
    assert torch.equal(f, images[1].double())  # the image of the best
    assert not state.known


def test_mixing_that_does_not_pay_ends():
    part = Anderson(below=float("inf"))
    f = torch.zeros(2, dtype=torch.float64)
    state = part.init(f)
    for _ in range(120):
        state = part.next(state, torch.tensor(1.0))
        f, state = part.mixed(state, f, f + 1, torch.ones(2).double(), torch.tensor(1.0))
    assert state.spent
    assert not state.ready


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_default_of_sinkhorn_mixes_batches_of_any_mass(dtype):
    x, y = clouds(40, 30, batch=(4,), dtype=dtype)
    a, b = torch.ones(4, 40, dtype=dtype), torch.full((4, 30), 40 / 30, dtype=dtype)
    a[:, 3], a[:, 4] = 0, 2
    epsilon = torch.tensor([0.1, 0.5, 2.0, 10.0], dtype=dtype)
    heavy, light = (solve(x, y, a=s * a, b=s * b, epsilon=epsilon, solver="sinkhorn") for s in (1.0, 1e-20))
    assert heavy.status.ok
    assert light.status.ok
    assert torch.allclose(1e20 * light.linear_value, heavy.linear_value, rtol=1e-3)


def test_the_column_marginal_is_exact_whether_converged_or_stopped():
    x, y = clouds()
    done = solve(x, y, epsilon=Relative(0.01))
    assert done.certificate.marginal_errors[1] < 1e-13
    with pytest.warns(brenier.NotConvergedWarning):
        stopped = solve(x, y, epsilon=Relative(0.01), max_iter=25)
    assert stopped.certificate.marginal_errors[1] < 1e-13


def test_each_problem_of_a_batch_has_its_own_factor():
    x, y = clouds(40, 30, batch=(3,))
    together = solve(x, y, epsilon=Relative(0.01), tol=1e-9)
    for k in range(3):
        alone = solve(x[k], y[k], epsilon=Relative(0.01), tol=1e-9)
        assert float(together.value[k]) == pytest.approx(float(alone.value), rel=1e-8)


def test_a_window_that_grows_falls_back_to_the_plain_iteration():
    part = OverRelaxation(window=2)
    state = part.init(torch.ones(1))._replace(omega=torch.tensor(1.9))
    for error in (1.0, 1.0, 2.0, 4.0):
        state = part.next(state, torch.tensor(error))
    assert state.omega == 1
    assert state.ceiling < 1.9


def test_a_window_without_progress_lowers_the_factor():
    part = OverRelaxation(window=2)
    state = part.init(torch.ones(1))._replace(omega=torch.tensor(1.9))
    for _ in range(4):
        state = part.next(state, torch.tensor(1.0))
    assert 1 < state.omega < 1.9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OverRelaxation(window=1), "OverRelaxation window: expected an integer >= 2, got 1."),
        (lambda: Anderson(depth=0), "Anderson depth: expected a positive integer, got 0."),
        (lambda: Anderson(growth=0.5), "Anderson growth: expected a finite number >= 1, got 0.5."),
        (lambda: Anderson(below=0.0), "Anderson below: expected a positive number, got 0.0."),
        (lambda: OverRelaxation(ceiling=2.0), "OverRelaxation ceiling: expected a number in [1, 2), got 2.0."),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(InvalidInput) as error:
        make()
    assert str(error.value) == message

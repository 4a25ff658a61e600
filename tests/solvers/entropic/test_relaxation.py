import pytest
import torch

import brenier
from brenier import InvalidInput, Relative, solve
from brenier.solvers import OverRelaxation, Plain, Sinkhorn


def clouds(n=120, m=90, d=3, dtype=torch.float64, batch=()):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(*batch, n, d, generator=generator, dtype=dtype)
    y = torch.randn(*batch, m, d, generator=generator, dtype=dtype) + 0.5
    return x, y


@pytest.mark.parametrize("marginals", [brenier.Exact(), brenier.KL(2.0)], ids=["exact", "kl"])
def test_same_solution_in_fewer_iterations(marginals):
    x, y = clouds()
    options = {"epsilon": Relative(0.005), "marginals": marginals}
    plain = solve(x, y, solver=Sinkhorn(tol=1e-9, relaxation=Plain(), max_iter=100_000), **options)
    fast = solve(x, y, solver=Sinkhorn(tol=1e-9), **options)
    assert plain.status.ok
    assert fast.status.ok
    assert float(fast.value) == pytest.approx(float(plain.value), rel=1e-9)
    if isinstance(marginals, brenier.Exact):  # soft marginals converge at a fixed rate by themselves
        assert fast.stats["n_iter"] < plain.stats["n_iter"] / 3


def test_the_column_marginal_is_exact_whether_converged_or_stopped():
    x, y = clouds()
    done = solve(x, y, epsilon=Relative(0.01))
    assert done.certificate.marginal_errors[1] < 1e-13
    with pytest.warns(brenier.NotConvergedWarning):
        stopped = solve(x, y, epsilon=Relative(0.01), max_iter=50)
    assert stopped.certificate.marginal_errors[1] < 1e-13


def test_each_problem_of_a_batch_has_its_own_factor():
    x, y = clouds(40, 30, batch=(3,))
    together = solve(x, y, epsilon=Relative(0.01), tol=1e-9)
    for k in range(3):
        alone = solve(x[k], y[k], epsilon=Relative(0.01), tol=1e-9)
        assert float(together.value[k]) == pytest.approx(float(alone.value), rel=1e-8)


def test_a_window_that_grows_falls_back_to_the_plain_iteration():
    part = OverRelaxation(window=2)
    state = part.init(torch.ones(()))._replace(omega=torch.tensor(1.9))
    for error in (1.0, 1.0, 2.0, 4.0):
        state = part.next(state, torch.tensor(error))
    assert state.omega == 1
    assert state.ceiling < 1.9


def test_a_window_without_progress_lowers_the_factor():
    part = OverRelaxation(window=2)
    state = part.init(torch.ones(()))._replace(omega=torch.tensor(1.9))
    for _ in range(4):
        state = part.next(state, torch.tensor(1.0))
    assert 1 < state.omega < 1.9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OverRelaxation(window=1), "OverRelaxation window: expected an integer >= 2, got 1."),
        (lambda: OverRelaxation(ceiling=2.0), "OverRelaxation ceiling: expected a number in [1, 2), got 2.0."),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(InvalidInput) as error:
        make()
    assert str(error.value) == message

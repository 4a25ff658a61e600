"""`brenier solve`: files in, certified answers out, and nothing half-done."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cli_outcome import Clouds, Ran

import brenier as library

Cli = Callable[..., Ran]

NAMES = ["u", "v", "w"]
KEYS = {
    "value",
    "linear_value",
    "lower_bound",
    "upper_bound",
    "relative_gap",
    "marginal_errors",
    "status",
    "solver",
    "reason",
    "epsilon",
    "iterations",
    "n",
    "m",
    "seconds",
    "peak_mb",
}


def exact(x: Any, y: Any, a: Any = None, b: Any = None, **options: Any) -> float:
    a, b = (None if w is None else w / w.sum() for w in (a, b))
    return float(library.solve(x, y, a=a, b=b, **options).value)


def frame(points: Any, weights: Any = None, text: bool = False) -> pd.DataFrame:
    table = pd.DataFrame(points, columns=NAMES)
    if text:
        table.insert(1, "cell type", ["T cell, naive"] * len(table))
    if weights is not None:
        table.insert(0, "mass", weights)
    return table


def write(path: Path, points: Any, weights: Any = None, text: bool = False) -> Path:
    table = frame(points, weights, text)
    if path.suffix == ".npy":
        np.save(path, points)
    elif path.suffix == ".npz":
        np.savez(path, x=points, **({} if weights is None else {"mass": weights}))
    elif path.suffix == ".csv":
        table.to_csv(path, index=False)
    elif path.suffix == ".tsv":
        table.to_csv(path, index=False, sep="\t")
    elif path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        import anndata

        obs = pd.DataFrame({"batch": ["one"] * len(points)}, index=[f"cell{i}" for i in range(len(points))])
        if weights is not None:
            obs["mass"] = weights
        adata = anndata.AnnData(points, obs=obs, var=pd.DataFrame(index=NAMES))
        adata.obsm["X_pca"] = points[:, :2] * 2
        adata.obsm["line"] = points[:, :1]
        adata.write_h5ad(path)
    return path


KINDS = [".npy", ".npz", ".csv", ".tsv", ".parquet", ".h5ad"]


# -- files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file(kind: str, brenier: Cli, clouds: Clouds, tmp_path: Path) -> None:
    x, y = write(tmp_path / f"x{kind}", clouds.x), write(tmp_path / f"y{kind}", clouds.y)
    ran = brenier("solve", x, y, "--json")
    assert ran.code == 0
    assert ran.err == ""
    assert set(ran.record) == KEYS
    assert ran.record["value"] == pytest.approx(exact(clouds.x, clouds.y), rel=1e-12)
    assert (ran.record["n"], ran.record["m"]) == (20, 16)


@pytest.mark.parametrize("kind", [".npz", ".csv", ".tsv", ".parquet", ".h5ad"])
def test_weights_come_from_a_column_and_are_normalised(kind: str, brenier: Cli, clouds: Clouds, tmp_path: Path) -> None:
    x = write(tmp_path / f"x{kind}", clouds.x, 5 * clouds.a)
    y = write(tmp_path / f"y{kind}", clouds.y, clouds.b)
    record = brenier("solve", x, y, "--weights", "mass", "--json").record
    assert record["value"] == pytest.approx(exact(clouds.x, clouds.y, clouds.a, clouds.b), rel=1e-12)


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".parquet"])
def test_text_columns_are_ignored_aloud(kind: str, brenier: Cli, clouds: Clouds, tmp_path: Path) -> None:
    x, y = write(tmp_path / f"x{kind}", clouds.x, text=True), write(tmp_path / f"y{kind}", clouds.y)
    ran = brenier("solve", x, y)
    assert ran.code == 0
    assert ran.err == f"{x}: columns without numbers ignored: cell type\n"
    assert f"{exact(clouds.x, clouds.y):.10g}" in ran.out


def test_files_without_header(brenier: Cli, clouds: Clouds, tmp_path: Path) -> None:
    x, y = tmp_path / "x.csv", tmp_path / "y.tsv"
    np.savetxt(x, clouds.x, delimiter=",")
    np.savetxt(y, clouds.y, delimiter="\t")
    expected = exact(clouds.x, clouds.y)
    assert brenier("solve", x, y, "--json").record["value"] == pytest.approx(expected, rel=1e-12)
    named = write(tmp_path / "named.csv", clouds.y)  # matched by position, as only one side has names
    assert brenier("solve", x, named, "--json").record["value"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("content", "points"),
    [
        ("1.5,2,a\n3,4,b\n", [[1.5, 2], [3, 4]]),  # text in the first row is no header where numbers stand too
        ("0,1,label\n3,4,a\n5,6,b\n", [[3, 4], [5, 6]]),  # but the numbers that pandas gives to columns are
        ("label,0,1\na,3,4\n", [[3, 4]]),
        ("u,v\n1,2\n", [[1, 2]]),
        ("1,2\n", [[1, 2]]),
        ("0,1\n2,3\n", [[0, 1], [2, 3]]),
        (",u,v\n0,1,2\n", [[0, 1, 2]]),  # an index is a column like others
    ],
)
def test_what_is_a_header(content: str, points: list[list[float]], brenier: Cli, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(content)
    ran = brenier("solve", tmp_path / "x.csv", tmp_path / "x.csv", "--dense", "--out", tmp_path / "p.npz")
    assert ran.code == 0
    with np.load(tmp_path / "p.npz") as held:
        np.testing.assert_allclose(held["mapped"], points)


def test_blank_lines_quotes_spaces_and_byte_order_marks(brenier: Cli, tmp_path: Path) -> None:
    x, y = tmp_path / "x.csv", tmp_path / "y.csv"
    x.write_bytes('\ufeff"u", v \r\n"0", 1\r\n\r\n 2 ,3e0\r\n'.encode())
    y.write_text("u,v\n5,1\n7,3\n")
    assert brenier("solve", x, y, "--json").record["value"] == pytest.approx(25)


@pytest.mark.parametrize(("kind", "other"), [(".csv", ".parquet"), (".h5ad", ".csv"), (".npy", ".tsv")])
def test_kinds_mix(kind: str, other: str, brenier: Cli, clouds: Clouds, tmp_path: Path) -> None:
    x, y = write(tmp_path / f"x{kind}", clouds.x), write(tmp_path / f"y{other}", clouds.y)
    expected = exact(clouds.x, clouds.y)
    assert brenier("solve", x, y, "--json").record["value"] == pytest.approx(expected, rel=1e-9)


def test_columns_are_matched_by_name(brenier: Cli, clouds: Clouds, tmp_path: Path) -> None:
    x, y = write(tmp_path / "x.csv", clouds.x), tmp_path / "y.csv"
    frame(clouds.y)[["w", "u", "v"]].to_csv(y, index=False)
    assert brenier("solve", x, y, "--json").record["value"] == pytest.approx(exact(clouds.x, clouds.y), rel=1e-12)


def test_columns_by_name(brenier: Cli, clouds: Clouds, tmp_path: Path) -> None:
    x, y = write(tmp_path / "x.csv", clouds.x, text=True), write(tmp_path / "y.parquet", clouds.y, clouds.b)
    ran = brenier("solve", x, y, "--columns", "w, u", "--json")
    assert ran.record["value"] == pytest.approx(exact(clouds.x[:, [2, 0]], clouds.y[:, [2, 0]]), rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_columns_by_number(kind: str, brenier: Cli, clouds: Clouds, tmp_path: Path) -> None:
    x, y = write(tmp_path / f"x{kind}", clouds.x), write(tmp_path / f"y{kind}", clouds.y)
    record = brenier("solve", x, y, "--columns", "2,0", "--json").record
    assert record["value"] == pytest.approx(exact(clouds.x[:, [2, 0]], clouds.y[:, [2, 0]]), rel=1e-12)


def test_columns_by_number_are_matched_by_position(brenier: Cli, clouds: Clouds, tmp_path: Path) -> None:
    x, y = tmp_path / "x.csv", tmp_path / "y.tsv"
    frame(clouds.x, clouds.a, text=True).to_csv(x, index=False)  # mass, u, cell type, v, w
    pd.DataFrame(np.c_[clouds.b, clouds.y], columns=["m", "m", "p", "q"]).to_csv(y, index=False, sep="\t")
    for left, right in (("1,3", "0,1"), ("3,1", "1,0")):
        frame(clouds.x)[["u", "v"]].to_csv(tmp_path / "uv.csv", index=False)
        columns = [int(k) for k in right.split(",")]
        expected = exact(clouds.x[:, columns], np.c_[clouds.b, clouds.y][:, columns])
        record = brenier("solve", tmp_path / "uv.csv", y, "--columns", right, "--json").record
        assert record["value"] == pytest.approx(expected, rel=1e-12)
        assert brenier("solve", x, x, "--columns", left, "--weights", "0", "--json").record["value"] == pytest.approx(0)


def test_dates_categories_and_missing_text_are_ignored_booleans_are_not(
    brenier: Cli, clouds: Clouds, tmp_path: Path
) -> None:
    table = frame(clouds.x)
    table["day"] = pd.Timestamp("2020-01-01")
    table["label"] = pd.Categorical(["a", None] * 10)
    table["note"] = [None, "b"] * 10
    table["empty"] = [None] * 20
    table["flag"] = [True, False] * 10
    table.to_parquet(tmp_path / "x.parquet")
    ran = brenier("solve", tmp_path / "x.parquet", tmp_path / "x.parquet", "--out", tmp_path / "p.npz")
    assert ran.code == 0
    assert "x.parquet: columns without numbers ignored: day, label, note, empty\n" in ran.err
    with np.load(tmp_path / "p.npz") as held:
        np.testing.assert_allclose(held["mapped"][:, 3], [1, 0] * 10)


@pytest.mark.parametrize(("key", "scale", "d"), [("X_pca", 2, 2), ("line", 1, 1)])
def test_embeddings_of_anndata(key: str, scale: int, d: int, brenier: Cli, clouds: Clouds, tmp_path: Path) -> None:
    x, y = write(tmp_path / "x.h5ad", clouds.x), write(tmp_path / "y.h5ad", clouds.y)
    record = brenier("solve", x, y, "--columns", key, "--json").record
    assert record["value"] == pytest.approx(exact(scale * clouds.x[:, :d], scale * clouds.y[:, :d]), rel=1e-12)
    assert record["solver"] == ("monotone" if d == 1 else "network-simplex")


def test_genes_of_anndata(brenier: Cli, clouds: Clouds, tmp_path: Path) -> None:
    import anndata
    from scipy.sparse import csr_matrix

    x, y = write(tmp_path / "x.h5ad", clouds.x), tmp_path / "y.h5ad"
    anndata.AnnData(csr_matrix(clouds.y), var=pd.DataFrame(index=NAMES)).write_h5ad(y)
    record = brenier("solve", x, y, "--columns", "u,w", "--json").record
    assert record["value"] == pytest.approx(exact(clouds.x[:, [0, 2]], clouds.y[:, [0, 2]]), rel=1e-12)


def test_embeddings_and_unknown_columns_of_anndata(brenier: Cli, clouds: Clouds, tmp_path: Path) -> None:
    import anndata

    x, bare = write(tmp_path / "x.h5ad", clouds.x), tmp_path / "bare.h5ad"
    assert brenier("solve", x, x, "--columns", "X_pca,u").complaint == (
        f"column 'u' of {x}: expected one of X_pca:0, X_pca:1, got no such column."
    )
    assert brenier("solve", x, x, "--columns", "X_pca", "--weights", "mass").complaint == (
        f"column 'mass' of {x}: expected one of X_pca:0, X_pca:1, got no such column."
    )
    anndata.AnnData(obsm={"X_pca": clouds.y[:, :2]}).write_h5ad(bare)
    assert brenier("solve", x, bare, "--columns", "X_pca", "--json").code == 0
    assert brenier("solve", x, bare).complaint == (
        f"{bare}: expected a matrix X, or a key of obsm in --columns, got no X; keys are X_pca."
    )


def test_arrays_of_one_axis_are_points_on_a_line(brenier: Cli, tmp_path: Path) -> None:
    x, y = tmp_path / "x.npy", tmp_path / "y.npz"
    np.save(x, np.array([3, 1, 2]))
    np.savez(y, points=np.array([11, 12, 13]))
    record = brenier("solve", x, y, "--json").record
    assert record["value"] == pytest.approx(100)
    assert record["solver"] == "monotone"


# -- answers -------------------------------------------------------------------------------------------------


def test_exact_by_default(brenier: Cli, pair: tuple[Path, Path]) -> None:
    record = brenier("solve", *pair, "--json").record
    assert record["solver"] == "network-simplex"
    assert record["status"] == "optimal"
    assert record["epsilon"] is None
    assert record["relative_gap"] < 1e-12
    assert max(record["marginal_errors"]) < 1e-12
    assert record["lower_bound"] <= record["value"] * (1 + 1e-12)
    assert record["value"] == pytest.approx(record["linear_value"])
    assert record["peak_mb"] > 10
    assert record["seconds"] >= 0


@pytest.mark.parametrize("text", ["0.5", "relative:0.1"])
def test_epsilon(text: str, brenier: Cli, clouds: Clouds, pair: tuple[Path, Path]) -> None:
    strength = library.Relative(0.1) if text.startswith("relative") else 0.5
    expected = library.solve(clouds.x, clouds.y, epsilon=strength)
    ran = brenier("solve", *pair, "--epsilon", text, "--json")
    assert ran.code == 0
    record = ran.record
    assert record["solver"] == "sinkhorn-newton"
    assert record["status"] == "converged"
    assert record["epsilon"] == pytest.approx(expected.stats["epsilon"])
    assert record["value"] == pytest.approx(float(expected.value))
    assert record["lower_bound"] <= exact(clouds.x, clouds.y) <= record["upper_bound"]


def test_cost_and_tolerance(brenier: Cli, clouds: Clouds, pair: tuple[Path, Path]) -> None:
    record = brenier("solve", *pair, "--cost", "euclidean", "--json").record
    assert record["value"] == pytest.approx(exact(clouds.x, clouds.y, cost="euclidean"), rel=1e-12)
    few, many = (
        brenier("solve", *pair, "--epsilon", "relative:0.05", "--tol", tol, "--json").record["iterations"]
        for tol in ("1e-2", "1e-8")
    )
    assert few < many


def test_the_table_says_what_the_object_says(brenier: Cli, pair: tuple[Path, Path], out: Path) -> None:
    record = brenier("solve", *pair, "--json").record
    ran = brenier("solve", *pair, "--out", out / "p.npz", "--plot", out / "p.png")
    assert ran.code == 0
    assert ran.err == ""
    lines = {line[:17].strip(): line[17:].strip() for line in ran.out.splitlines()}
    assert lines["value"] == f"{record['value']:.10g}"
    assert lines["status"] == "optimal: the potentials prove it"
    assert lines["points"] == "20 -> 16"
    assert lines["solver"].startswith("network-simplex (exact, and the 20 x 16 cost matrix")
    assert lines["plan"] == str(out / "p.npz")  # whole
    assert lines["picture"] == str(out / "p.png")
    assert {"relative gap", "marginal errors", "time, memory", "iterations", "optimum between"} <= set(lines)


# -- what is written -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", ["0", "relative:0.1"])
@pytest.mark.parametrize("form", ["--sparse", "--dense"])
def test_written_plan_has_the_marginals(
    form: str, epsilon: str, brenier: Cli, clouds: Clouds, tmp_path: Path, out: Path
) -> None:
    x, y = write(tmp_path / "x.csv", clouds.x, clouds.a), write(tmp_path / "y.csv", clouds.y, clouds.b)
    ran = brenier("solve", x, y, "--weights", "mass", "--epsilon", epsilon, form, "--out", out / "plan.npz", "--json")
    assert ran.code == 0
    assert ran.record["kept_mass"] == pytest.approx(1, abs=1e-6)
    always = {"f", "g", "a", "b", "epsilon", "mapped"}
    with np.load(out / "plan.npz") as held:
        if form == "--sparse":
            assert set(held.files) == {"shape", "rows", "cols", "mass", *always}
            plan = np.zeros(held["shape"])
            np.add.at(plan, (held["rows"], held["cols"]), held["mass"])
            assert (held["mass"] > 0).all()
            if epsilon == "0":
                assert len(held["mass"]) <= 20 + 16 - 1
        else:
            assert set(held.files) == {"shape", "plan", *always}
            plan = held["plan"]
        assert plan.shape == tuple(held["shape"]) == (20, 16)
        assert held["f"].shape == (20,)
        assert held["g"].shape == (16,)
        mapped = held["mapped"]
        np.testing.assert_allclose(held["a"], clouds.a / clouds.a.sum(), rtol=1e-12)
        np.testing.assert_allclose(held["b"], clouds.b / clouds.b.sum(), rtol=1e-12)
        slack = held["f"][:, None] + held["g"] - ((clouds.x[:, None] - clouds.y) ** 2).sum(-1)
        if epsilon == "0":  # complementary slackness: the potentials price what is used
            assert held["epsilon"] == 0
            np.testing.assert_allclose(slack[plan > 0], 0, atol=1e-9)
            assert slack.max() < 1e-9
        else:
            rebuilt = np.outer(held["a"], held["b"]) * np.exp(slack / held["epsilon"])
            np.testing.assert_allclose(plan, rebuilt, atol=1e-9)
    np.testing.assert_allclose(plan.sum(1), clouds.a / clouds.a.sum(), atol=1e-6)
    np.testing.assert_allclose(plan.sum(0), clouds.b / clouds.b.sum(), atol=1e-6)
    np.testing.assert_allclose(mapped, plan @ clouds.y / plan.sum(1, keepdims=True), atol=1e-6)
    assert [p.name for p in out.iterdir()] == ["plan.npz"]


def test_long_rows_are_cut_and_the_loss_is_told(brenier: Cli, tmp_path: Path, out: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = write(tmp_path / "x.npy", rng.normal(size=(5, 3))), write(tmp_path / "y.npy", rng.normal(size=(60, 3)))
    arguments = ["solve", x, y, "--epsilon", "relative:0.5", "--out", out / "p.npz"]
    assert "(the 32 largest entries of each row: " in brenier(*arguments).out
    record = brenier(*arguments, "--json").record
    with np.load(out / "p.npz") as held:
        assert len(held["mass"]) == 5 * 32
        assert record["kept_mass"] == pytest.approx(held["mass"].sum())
    assert 0.5 < record["kept_mass"] < 1


@pytest.mark.parametrize("d", [1, 2, 5])
def test_picture(d: int, brenier: Cli, tmp_path: Path, out: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = tmp_path / "x.npy", tmp_path / "y.npy"
    np.save(x, rng.normal(size=(12, d)))
    np.save(y, rng.normal(size=(9, d)))
    assert brenier("solve", x, y, "--plot", out / "p.png").code == 0
    assert (out / "p.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert (out / "p.png").stat().st_size > 5000


@pytest.mark.parametrize(("kind", "magic"), [(".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_other_pictures(kind: str, magic: bytes, brenier: Cli, pair: tuple[Path, Path], out: Path) -> None:
    assert brenier("solve", *pair, "--epsilon", "relative:0.1", "--plot", out / f"p{kind}").code == 0
    assert (out / f"p{kind}").read_bytes().startswith(magic)


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("epsilon", ["0", "relative:0.001"])
def test_not_converged_is_exit_code_1_with_the_best_so_far(
    epsilon: str, as_json: bool, brenier: Cli, clouds: Clouds, pair: tuple[Path, Path], out: Path
) -> None:
    options = ["--max-iter", "2", "--epsilon", epsilon, "--out", out / "p.npz", "--plot", out / "p.png", "--dense"]
    ran = brenier("solve", *pair, *options, *(["--json"] if as_json else []))
    assert ran.code == 1
    assert sorted(p.name for p in out.iterdir()) == ["p.npz", "p.png"]
    with np.load(out / "p.npz") as held:
        assert held["plan"].shape == (20, 16)
        np.testing.assert_allclose(held["plan"].sum(0), 1 / 16, atol=1e-9)
    if as_json:
        record = ran.record
        assert record["status"] == "max_iter"
        best = exact(clouds.x, clouds.y)
        assert record["lower_bound"] <= best <= record["upper_bound"]
        assert record["relative_gap"] > 0
    else:
        assert "stopped at max_iter before the tolerance was met; raise max_iter, tol or epsilon" in ran.out


def test_an_epsilon_below_rounding_is_neither_converged_nor_broken_json(brenier: Cli, pair: tuple[Path, Path]) -> None:
    for epsilon in ("1e-300", "1e-320"):
        ran = brenier("solve", *pair, "--epsilon", epsilon, "--max-iter", "2000", "--json")
        assert ran.code == 1
        assert ran.record["status"] != "converged"
        gap = ran.record["relative_gap"]
        assert gap is None or gap > 1e-3


# -- bad input -----------------------------------------------------------------------------------------------


def folder_of_bad_files(folder: Path) -> None:
    """Everything that the refusals below are about."""
    rng = np.random.default_rng(0)
    np.save(folder / "x.npy", rng.normal(size=(6, 2)))
    np.save(folder / "wide.npy", rng.normal(size=(6, 3)))
    np.save(folder / "cube.npy", rng.normal(size=(2, 3, 4)))
    np.save(folder / "none.npy", np.zeros((0, 2)))
    np.save(folder / "objects.npy", np.array([{}, {}]), allow_pickle=True)
    np.savez(folder / "two.npz", p=np.ones((3, 2)), q=np.ones((3, 2)))
    np.savez(folder / "x.npz", x=np.ones((3, 2)), mass=np.array([1.0, 2.0]))
    (folder / "x.txt").write_text("1,2\n")
    (folder / "folder.csv").mkdir()
    (folder / "empty.csv").write_text("\n")
    (folder / "header.csv").write_text("u,v\n")
    (folder / "ragged.csv").write_text("u,v\n1,2\n3\n")
    (folder / "text.csv").write_text("u,v\na,b\nc,d\n")
    (folder / "uv.csv").write_text("u,v\n1,2\n3,4\n")
    (folder / "uw.csv").write_text("u,w\n1,2\n3,4\n")
    (folder / "gap.csv").write_text("u,v\n1,2\n3,\n")
    (folder / "inf.csv").write_text("u,v\n1,2\n3,inf\n")
    (folder / "latin.csv").write_bytes("u,v\n1,\xe9\n".encode("latin-1"))
    (folder / "minus.csv").write_text("u,v,mass\n1,2,1\n3,4,-1\n")
    (folder / "zero.csv").write_text("u,v,mass\n1,2,0\n3,4,0\n")
    (folder / "nomass.csv").write_text("u,v,mass\n1,2,one\n3,4,two\n")
    (folder / "fake.parquet").write_text("not parquet")
    np.save(folder / "nan.npy", np.where(np.arange(8).reshape(4, 2) == 5, np.nan, 1.0))
    np.save(folder / "complex.npy", np.ones((3, 2), complex))
    np.save(folder / "flat.npy", np.ones((3, 0)))
    (folder / "mixed.csv").write_text("u,v\n1,2\nNA,4\n")
    (folder / "twice.csv").write_text("u,u\n1,2\n3,4\n")
    (folder / "empty.npy").touch()
    (folder / "cut.npz").write_bytes(b"PK\x03\x04 and no more")
    (folder / "long.csv").write_text("u\n" + "1" * 200_000)


BAD: list[tuple[str, str]] = [
    ("missing.csv x.npy", "missing.csv: expected a file, got nothing there."),
    ("folder.csv x.npy", "folder.csv: expected a file, got a folder."),
    ("x.txt x.npy", "x.txt: expected a file of kind .npy .npz .csv .tsv .parquet .h5ad, got '.txt'."),
    ("cube.npy x.npy", "cube.npy: expected an array of shape (n, d), got shape (2, 3, 4)."),
    ("x.npy none.npy", "none.npy: expected at least one row, got none."),
    (
        "objects.npy x.npy",
        "objects.npy: expected a readable .npy file, got Object arrays cannot be loaded when allow_pickle=False.",
    ),
    ("two.npz x.npy", "two.npz: expected an array named 'x', or a single array, got p, q."),
    ("empty.csv x.npy", "empty.csv: expected at least one row, got an empty file."),
    ("header.csv x.npy", "header.csv: expected at least one row, got none."),
    ("ragged.csv x.npy", "ragged.csv, row 3: expected 2 cells, as in the first row, got 1."),
    ("text.csv x.npy", "text.csv: expected at least one column of numbers, got only text in u, v."),
    ("x.npy wide.npy", "x.npy and wide.npy: expected the same number of columns, got 2 and 3. Choose shared ones with "
     "--columns."),
    ("uv.csv uw.csv", "uv.csv and uw.csv: expected the same columns, got v, w in one of them only. Choose with "
     "--columns."),
    ("uv.csv uw.csv --columns u,v", "column 'v' of uw.csv: expected one of u, w, got no such column."),
    ("uv.csv uv.csv --weights mass", "column 'mass' of uv.csv: expected one of u, v, got no such column."),
    ("text.csv uv.csv --columns u", "column 'u' of text.csv: expected numbers, got 'a' in data row 1. Drop it, or "
     "choose with --columns."),
    ("gap.csv uv.csv --columns u,v", "column 'v' of gap.csv: expected finite numbers, got a gap or infinity in data "
     "row 2. Drop it."),
    ("inf.csv uv.csv --columns v", "column 'v' of inf.csv: expected finite numbers, got a gap or infinity in data "
     "row 2. Drop it."),
    ("minus.csv minus.csv --weights mass", "weights of minus.csv: expected nonnegative numbers with a positive sum, "
     "got a minimum of -1."),
    ("zero.csv zero.csv --weights mass", "weights of zero.csv: expected nonnegative numbers with a positive sum, got "
     "a minimum of 0."),
    ("nomass.csv nomass.csv --weights mass", "column 'mass' of nomass.csv: expected numbers, got 'one' in data row 1. "
     "Drop it, or choose with --columns."),
    ("gap.csv uv.csv", "column 'v' of gap.csv: expected finite numbers, got a gap or infinity in data row 2. Drop it."),
    ("nan.npy x.npy", "column '1' of nan.npy: expected finite numbers, got a gap or infinity in data row 3. Drop it."),
    ("mixed.csv uv.csv", "column 'u' of mixed.csv: expected numbers, got 'NA' in data row 2. Drop it, or choose with "
     "--columns."),
    ("twice.csv uv.csv", "twice.csv: expected columns of different names, got 'u' more than once. Choose by number "
     "with --columns."),
    ("complex.npy x.npy", "complex.npy: expected at least one column of numbers, got only text in 0, 1."),
    ("flat.npy x.npy", "flat.npy: expected at least one column of numbers, got none."),
    ("uv.csv uv.csv --epsilon small", "--epsilon: expected a number >= 0 or relative:FRACTION, got 'small'."),
    ("uv.csv uv.csv --epsilon -1", "--epsilon: expected a number >= 0 or relative:FRACTION, got '-1'."),
    ("uv.csv uv.csv --epsilon rel:0.1", "--epsilon: expected a number >= 0 or relative:FRACTION, got 'rel:0.1'."),
    ("uv.csv uv.csv --epsilon relative:nan", "--epsilon: expected a number >= 0 or relative:FRACTION, got "
     "'relative:nan'."),
    ("uv.csv uv.csv --epsilon inf", "--epsilon: expected a number >= 0 or relative:FRACTION, got 'inf'."),
    ("uv.csv uv.csv --max-iter 0", "max_iter: expected a positive integer, got 0."),
    ("uv.csv uv.csv --timeout 0", "timeout: expected a finite number > 0, got 0.0."),
    ("uv.csv uv.csv --tol 0", "tol: expected a positive finite number, got 0.0."),
    ("uv.csv uv.csv --out out/plan.csv", "--out: expected a file ending in .npz, got 'plan.csv'."),
    ("uv.csv uv.csv --plot out/plan.gif", "--plot: expected a file ending in .png, .svg or .pdf, got 'plan.gif'."),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[b[0] for b in BAD])
def test_bad_input(
    arguments: str, message: str, brenier: Cli, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of_bad_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    given = arguments.split()
    if "--out" not in given and "--plot" not in given:
        given += ["--out", "out/plan.npz", "--plot", "out/plan.png"]
    for more in ([], ["--json"]):
        assert brenier("solve", *given, *more).complaint == message
        assert list(out.iterdir()) == []


def test_bad_cost_names_the_good_ones(brenier: Cli, pair: tuple[Path, Path]) -> None:
    complaint = brenier("solve", *pair, "--cost", "manhatten").complaint
    assert complaint.startswith("cost: expected ")
    assert "'cityblock'" in complaint
    assert "'manhatten'" in complaint


def test_unreadable_text_and_parquet(brenier: Cli, tmp_path: Path) -> None:
    folder_of_bad_files(tmp_path)
    for name in ("latin.csv", "fake.parquet", "empty.npy", "cut.npz", "long.csv"):
        complaint = brenier("solve", tmp_path / name, tmp_path / "x.npy").complaint
        assert complaint.startswith(f"{tmp_path / name}: expected a readable {Path(name).suffix} file, got ")


@pytest.mark.parametrize(
    ("kind", "missing", "package", "extra"),
    [
        (".parquet", "pandas", "pandas", "tables"),
        (".parquet", "pyarrow", "pyarrow", "tables"),
        (".h5ad", "anndata", "anndata", "cells"),
    ],
)
def test_missing_readers_are_named(
    kind: str,
    missing: str,
    package: str,
    extra: str,
    brenier: Cli,
    clouds: Clouds,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = write(tmp_path / f"x{kind}", clouds.x)
    monkeypatch.setitem(sys.modules, missing, None)
    assert brenier("solve", x, x).complaint == (
        f"Reading {kind} needs the package '{package}', which is not installed. Install it with: "
        f"pip install 'brenier[{extra}]'"
    )


def test_weights_of_another_length(brenier: Cli, tmp_path: Path) -> None:
    folder_of_bad_files(tmp_path)
    complaint = brenier("solve", tmp_path / "x.npz", tmp_path / "x.npz", "--weights", "mass").complaint
    assert "3" in complaint
    assert "2" in complaint


def test_what_cannot_be_written_is_told_before_the_work(
    brenier: Cli, pair: tuple[Path, Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brenier.api.solve", lambda *_, **__: pytest.fail("the work began"))
    (out / "p.npz").mkdir()
    assert brenier("solve", *pair, "--out", out / "p.npz").complaint == (
        f"{out / 'p.npz'}: expected a file to write, got a folder."
    )
    monkeypatch.setattr("brenier.cli.app._DENSE_PLAN", 300)
    assert brenier("solve", *pair, "--dense", "--out", out / "q.npz").complaint == (
        "--dense: expected at most 300 entries, got 20 x 16. Use --sparse."
    )
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert brenier("solve", *pair, "--plot", out / "p.png").complaint == (
        "--plot needs the package 'matplotlib', which is not installed. Install it with: pip install 'brenier[plot]'"
    )


def test_a_full_disk_is_told_in_one_line(
    brenier: Cli, pair: tuple[Path, Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    complaint = brenier("solve", *pair, "--out", out / "p.npz").complaint
    assert complaint.endswith(": expected to read or write, got No space left on device.")
    assert list(out.iterdir()) == []


def test_missing_folder(brenier: Cli, pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "nowhere"
    for option, name in (("--out", "p.npz"), ("--plot", "p.png")):
        message = f"{folder / name}: expected a folder that exists, got {folder}. Create it first."
        assert brenier("solve", *pair, option, folder / name).complaint == message


@pytest.mark.parametrize("arguments", ["", "x.npy", "x.npy y.npy --nonsense", "x.npy y.npy --max-iter many"])
def test_wrong_usage_is_exit_code_2(arguments: str, brenier: Cli) -> None:
    ran = brenier("solve", *arguments.split())
    assert ran.code == 2
    assert "Usage: brenier solve" in ran.err


def test_failure_while_writing_leaves_the_old_file(
    brenier: Cli, pair: tuple[Path, Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (out / "p.npz").write_bytes(b"old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("brenier._files.os.replace", interrupted)
    assert brenier("solve", *pair, "--out", out / "p.npz").code == 130
    assert [p.name for p in out.iterdir()] == ["p.npz"]
    assert (out / "p.npz").read_bytes() == b"old"


def test_paths_are_folded_not_cut_on_a_narrow_terminal(
    brenier: Cli, pair: tuple[Path, Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from brenier.cli import app

    monkeypatch.setattr(app._out, "width", 40)
    ran = brenier("solve", *pair, "--out", out / "the-plan.npz")
    assert str(out / "the-plan.npz") in "".join(line[17:].rstrip() for line in ran.out.splitlines())

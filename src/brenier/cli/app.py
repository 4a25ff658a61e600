"""The commands. Exit codes: 0 done, 1 not converged (best so far written), 2 bad input."""

from __future__ import annotations

import io
import json
import math
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
import typer
from rich.console import Console
from rich.table import Table as RichTable
from typer.core import TyperGroup

from .._files import write_whole
from ..errors import InvalidInput, MissingExtra, NotConvergedWarning, need, refuse

__all__ = ["main"]


class _Commands(TyperGroup):
    """Ctrl-C ends with code 130: click would end with 1, which here means not converged."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _err.print("interrupted; what was not finished is not written", highlight=False)
            raise SystemExit(130) from None


app = typer.Typer(
    name="brenier",
    cls=_Commands,
    help="Certified optimal transport: solve problems, run the systems, read the reports.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Real data sets: list them, fetch them.", no_args_is_help=True)
app.add_typer(data_app, name="data")

_out = Console()
_err = Console(stderr=True)
# Entries of a dense plan that is still written without being asked for twice: 0.8 GB.
_DENSE_PLAN = 10**8
_MAX_PER_ROW = 32


def main() -> None:
    """Run the command line; bad input ends with one sentence and exit code 2."""
    try:
        app(prog_name="brenier")
    except (InvalidInput, MissingExtra) as error:
        _fail(str(error))
    except OSError as error:  # a disk that is full, a folder that may not be written
        _fail(f"{error.filename or 'files'}: expected to read or write, got {error.strerror or error}.")


def _fail(message: str) -> NoReturn:
    _err.print(message, style="red", highlight=False, markup=False, soft_wrap=True)
    raise SystemExit(2)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        from .. import __version__

        _out.print(__version__)
        raise typer.Exit


@app.command()
def solve(
    source: Annotated[Path, typer.Argument(help="Source points: .npy .npz .csv .tsv .parquet .h5ad")],
    target: Annotated[Path, typer.Argument(help="Target points, with the same columns.")],
    cost: Annotated[str, typer.Option(help="Ground cost, e.g. sqeuclidean, euclidean, cityblock.")] = "sqeuclidean",
    epsilon: Annotated[
        str, typer.Option(help="Entropic strength in cost units, or relative:0.05 of the mean cost; 0 is exact.")
    ] = "0",
    weights: Annotated[str | None, typer.Option(help="Column of masses, in both files.")] = None,
    columns: Annotated[str | None, typer.Option(help="Columns to use, by name or number: u,v,w")] = None,
    out: Annotated[Path | None, typer.Option(help="Write plan, potentials and mapped points (.npz).")] = None,
    sparse: Annotated[
        bool, typer.Option("--sparse/--dense", help="Write the plan's entries, or the whole matrix.")
    ] = True,
    plot: Annotated[
        Path | None, typer.Option(help="Draw both clouds and the strongest lines (.png .svg .pdf).")
    ] = None,
    tol: Annotated[float | None, typer.Option(help="Marginal error to stop at.")] = None,
    max_iter: Annotated[int | None, typer.Option(help="Iteration limit.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds after which the best so far is the answer.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Transport one cloud of points onto another, with a certificate.

    Weights are divided by their sum. The exit code is 1 when the solver stopped before its tolerance.
    """
    from ..api import solve as solve_problem
    from ..solution import Solution
    from .tables import read_points

    names = [name.strip() for name in columns.split(",")] if columns else None
    x = read_points(source, None if names is None else list(names), weights)
    y = read_points(target, None if names is None else list(names), weights)
    _check_outputs(out, plot)
    if out is not None and not sparse and len(x.x) * len(y.x) > _DENSE_PLAN:
        refuse("--dense", f"at most {_DENSE_PLAN:,} entries", f"{len(x.x):,} x {len(y.x):,}", "Use --sparse.")
    strength = _read_epsilon(epsilon)
    a, b = (None if p.weights is None else _normalised(p.weights, f) for p, f in ((x, source), (y, target)))
    order = _same_columns(x.names, y.names, source, target)
    if not as_json:
        for points, file in ((x, source), (y, target)):
            if points.ignored:
                _err.print(f"{file}: columns without numbers ignored: {', '.join(points.ignored)}", soft_wrap=True)

    quiet = as_json or not _err.is_terminal
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)  # the status is printed and sets the exit code
        solution: Solution = solve_problem(
            x.x,
            y.x[:, order],
            a=a,
            b=b,
            cost=cost,
            epsilon=strength,
            tol=tol,
            max_iter=max_iter,
            timeout=timeout,
            progress=not quiet,
        )
    seconds = time.perf_counter() - start
    certificate = solution.certificate
    record: dict[str, Any] = {
        "value": float(solution.value),
        "linear_value": float(solution.linear_value),
        "lower_bound": float(certificate.dual),
        "upper_bound": float(certificate.primal),
        "relative_gap": float(certificate.relative_gap),
        "marginal_errors": [float(e) for e in certificate.marginal_errors],
        "status": solution.status.name.lower(),
        "solver": solution.stats["solver"],
        "reason": solution.stats["reason"],
        "epsilon": solution.stats["epsilon"],
        "iterations": solution.stats["n_iter"],
        "n": len(x.x),
        "m": len(y.x),
        "seconds": round(seconds, 4),
    }
    if out is not None:
        record["kept_mass"] = _write_plan(solution, out, sparse)
    if plot is not None:
        _draw(solution, plot)
    record["peak_mb"] = round(_peak_mb(), 1)
    if as_json:
        record["marginal_errors"] = [_finite(e) for e in record["marginal_errors"]]
        sys.stdout.write(json.dumps({key: _finite(value) for key, value in record.items()}) + "\n")
    else:
        _show_solution(record, solution.status.value, out, plot)
    if not solution.status.ok:
        raise typer.Exit(1)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read_epsilon(text: str) -> Any:
    from ..problem import Relative

    relative, _, number = text.rpartition(":")
    try:
        value = float(number)
    except ValueError:
        value = float("nan")
    if relative not in ("", "relative") or not value >= 0 or value == float("inf"):
        refuse("--epsilon", "a number >= 0 or relative:FRACTION", repr(text))
    if value == 0:
        return None
    return Relative(value) if relative else value


def _normalised(weights: np.ndarray, file: Path) -> np.ndarray:
    if (weights < 0).any() or weights.sum() <= 0:
        refuse(f"weights of {file}", "nonnegative numbers with a positive sum", f"a minimum of {weights.min():g}")
    return weights / weights.sum()


def _same_columns(left: list[str], right: list[str], source: Path, target: Path) -> list[int]:
    """Match columns by name when both files name them; by position when the widths agree and one does not."""
    if len(left) != len(right):
        cure = "Choose shared ones with --columns."
        refuse(f"{source} and {target}", "the same number of columns", f"{len(left)} and {len(right)}", cure)
    if set(left) == set(right):
        return [right.index(name) for name in left]
    unnamed = [str(k) for k in range(len(left))]
    if left == unnamed or right == unnamed:
        return list(range(len(left)))
    odd = ", ".join(sorted(set(left) ^ set(right)))
    refuse(f"{source} and {target}", "the same columns", f"{odd} in one of them only", "Choose with --columns.")


def _check_outputs(out: Path | None, plot: Path | None) -> None:
    """Fail before the work, not after it."""
    if out is not None and out.suffix != ".npz":
        refuse("--out", "a file ending in .npz", repr(out.name))
    if plot is not None and plot.suffix not in (".png", ".svg", ".pdf"):
        refuse("--plot", "a file ending in .png, .svg or .pdf", repr(plot.name))
    if plot is not None:
        need("matplotlib", "plot", "--plot")
    for path in (out, plot):
        if path is not None and path.is_dir():
            refuse(str(path), "a file to write", "a folder")
        if path is not None and not path.resolve().parent.is_dir():
            refuse(str(path), "a folder that exists", str(path.parent), "Create it first.")


def _write_plan(solution: Any, path: Path, sparse: bool) -> float:
    from ..plan import SparsePlan

    n, m = solution.problem.shape
    arrays: dict[str, Any] = {"shape": np.array([n, m])}
    if sparse:
        exact = isinstance(solution.plan, SparsePlan)
        rows, cols, mass = solution.plan.entries(max_per_row=None if exact else _MAX_PER_ROW)
        arrays |= {"rows": rows, "cols": cols, "mass": mass}
        kept = float(np.sum(mass) / solution.problem.a.sum())
    else:
        arrays["plan"] = solution.plan.dense()
        kept = 1.0
    # with these the whole plan can be had again: P = a b exp((f + g - C) / epsilon)
    f, g = solution.potentials
    arrays |= {"f": f, "g": g, "a": solution.problem.a.numpy(), "b": solution.problem.b.numpy()}
    arrays["epsilon"] = np.array(solution.stats["epsilon"] or 0.0)
    arrays["mapped"] = solution.map()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_whole(path, buffer.getvalue())
    return kept


def _draw(solution: Any, path: Path) -> None:
    need("matplotlib", "plot", "--plot").use("Agg")
    ax = solution.plot()
    buffer = io.BytesIO()
    ax.figure.savefig(buffer, format=path.suffix[1:], dpi=150, bbox_inches="tight")
    write_whole(path, buffer.getvalue())


def _peak_mb() -> float:
    try:
        import resource
    except ImportError:  # not on Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _pairs() -> RichTable:
    """A table of names and values; a long path goes on in the next line, and is not cut."""
    table = RichTable(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(overflow="fold")
    return table


def _show_solution(record: dict[str, Any], status: str, out: Path | None, plot: Path | None) -> None:
    table = _pairs()
    errors = record["marginal_errors"]
    rows = [
        ("value", f"{record['value']:.10g}"),
        ("transport cost", f"{record['linear_value']:.10g}"),
        ("optimum between", f"{record['lower_bound']:.10g} and {record['upper_bound']:.10g}"),
        ("relative gap", f"{record['relative_gap']:.3g}"),
        ("marginal errors", f"{errors[0]:.3g} and {errors[1]:.3g}"),
        ("status", status),
        ("solver", f"{record['solver']} ({record['reason']})"),
        ("points", f"{record['n']:,} -> {record['m']:,}"),
        ("iterations", f"{record['iterations']:,}"),
        ("time, memory", f"{record['seconds']:.3g} s, {record['peak_mb']:.0f} MB"),
    ]
    if record["epsilon"] is not None:
        rows.insert(2, ("epsilon", f"{record['epsilon']:.6g}"))
    if out is not None:
        kept = record["kept_mass"]
        partial = f" (the {_MAX_PER_ROW} largest entries of each row: {kept:.1%} of the mass; f and g give the rest)"
        rows.append(("plan", f"{out}{partial if kept < 1 - 1e-6 else ''}"))
    if plot is not None:
        rows.append(("picture", str(plot)))
    for name, value in rows:
        table.add_row(f"[bold]{name}", value)
    _out.print(table)


@app.command("list")
def list_systems() -> None:
    """List the forty systems by wing: on the shelf, or planned."""
    from ..systems.catalogue import CATALOGUE

    table = RichTable(box=None, padding=(0, 2, 0, 0))
    for heading in ("wing", "slug", "state", "what for"):
        table.add_column(heading, no_wrap=heading != "what for")
    wing = ""
    for system in CATALOGUE:
        state = "[green]on the shelf" if system.on_shelf else "planned"
        table.add_row(system.wing if system.wing != wing else "", system.slug, state, system.summary)
        wing = system.wing
    _out.print(table)
    ready = sum(s.on_shelf for s in CATALOGUE)
    _out.print(f"{ready} of {len(CATALOGUE)} on the shelf; run one with: brenier run SLUG")


@app.command()
def run(
    slug: Annotated[str, typer.Argument(help="A system, as `brenier list` names it.")],
    preset: Annotated[str, typer.Option(help="smoke (seconds), quick (minutes) or full.")] = "quick",
    seed: Annotated[int | None, typer.Option(help="First seed; the others follow.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the JSON record, figures and page.")] = Path("report"),
) -> None:
    """Run the experiment of a system and write its report."""
    report = _run_experiment(slug, preset, seed)
    path = report.save(out)
    _show_report(report)
    _out.print(f"written: {path}")


def _run_experiment(slug: str, preset: str, seed: int | None) -> Any:
    from ..data import DataUnavailable
    from ..experiments import start

    try:
        if _err.is_terminal:
            with _err.status(f"{slug}: starting") as status:
                return start(slug, preset, seed=seed, log=lambda line: status.update(f"{slug}: {line}"))
        return start(slug, preset, seed=seed, log=lambda line: _err.print(f"{slug}: {line}", highlight=False))
    except DataUnavailable as error:
        _fail(str(error))


def _show_report(report: Any) -> None:
    from ..experiments.report import Table

    seeds = f"seeds {', '.join(map(str, report.seeds))}, " if report.seeds else ""
    _out.print(f"\n[bold]{report.title}[/] ({report.preset}, {seeds}{report.provenance['seconds']} s)")
    for table in report.tables:
        shown = RichTable("", *table.columns, title=table.title, title_justify="left", box=None, padding=(0, 2, 0, 0))
        for name, cells in table.rows.items():
            shown.add_row(name, *(Table.show(c) for c in cells))
        _out.print(shown)
        _out.print()
    for note in report.notes:
        _out.print(f"note: {note}", highlight=False)
    for claim in report.claims:
        mark = "[green]held    [/]" if claim.held else "[red]not held[/]"
        _out.print(f"{mark} {claim.sentence}: {claim.value:.4g} (threshold {claim.threshold:.4g})", highlight=False)


@app.command()
def report(
    results: Annotated[Path, typer.Option(help="Folder with the JSON records.")] = Path("report"),
    out: Annotated[Path | None, typer.Option(help="Folder for the site; the same when left out.")] = None,
) -> None:
    """Write one static HTML site of the last results."""
    from ..experiments.site import write_site

    if not results.is_dir():
        refuse(str(results), "a folder of reports", "nothing there", "Run `brenier run lot` first.")
    _out.print(f"open {write_site(results, out or results).resolve()}", soft_wrap=True)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("report"),
    preset: Annotated[str, typer.Option(help="Preset of the experiment.")] = "quick",
) -> None:
    """Solve one real problem three ways, run LOT, and write a report."""
    from ..experiments.demo import three_ways
    from ..experiments.site import write_site

    first = three_ways()
    first.save(out)
    _show_report(first)
    lot = _run_experiment("lot", preset, None)
    lot.save(out)
    _show_report(lot)
    _out.print(f"\nopen {write_site(out, out).resolve()}", soft_wrap=True)


@app.command()
def decode(
    prompt: Annotated[str, typer.Option(help="Text to continue; - reads it from standard input.")],
    target: Annotated[str, typer.Option(help="smollm2, or a causal Hugging Face model, by folder or id.")] = "smollm2",
    draft: Annotated[
        str,
        typer.Option(help="The same, or exit:N (first layers of the target), ngram:N (of prompt and manual), none."),
    ] = "ngram:3",
    method: Annotated[
        str, typer.Option(help="How drafts are verified: spectr, specinfer, traversal, block, ...")
    ] = "spectr",
    drafts: Annotated[int | None, typer.Option(help="Paths that are drafted; 4, or 1 for block and naive.")] = None,
    trunk: Annotated[int, typer.Option(help="Tokens that all paths share.")] = 0,
    length: Annotated[int, typer.Option(help="Tokens of a path after the trunk.")] = 4,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to write at most.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the most probable token each time.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Sample from the most probable tokens only.")] = None,
    top_p: Annotated[float, typer.Option(help="Sample from the fewest tokens that hold this share.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends the output; may be given again.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the chat template of the model.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Continue a text with a language model, in fewer calls of it, as it would have written it."""
    from ..data import DataUnavailable
    from .decoding import Setting, write

    text = sys.stdin.read() if prompt == "-" else prompt
    paths = drafts if drafts is not None else 1 if method in ("block", "naive") else 4
    setting = Setting(
        text, target, draft, method, paths, trunk, length, max_new_tokens, temperature, top_k, top_p, seed,
        tuple(stop or ()), chat,
    )  # fmt: skip
    try:
        record = write(setting, (lambda piece: None) if as_json else _say)
    except DataUnavailable as error:
        _fail(str(error))
    if as_json:
        sys.stdout.write(json.dumps({key: _finite(value) for key, value in record.items()}) + "\n")
        return
    table = _pairs()
    for name, value in (
        ("block efficiency", f"{record['block_efficiency']:.2f} tokens a call"),
        ("target calls", f"{record['target_calls']:,} for {record['tokens']:,} tokens"),
        ("draft calls", f"{record['draft_calls']:,}"),
        ("speed", f"{record['tokens_per_second']:.1f} tokens/s"),
        ("ended by", record["finish_reason"]),
    ):
        table.add_row(f"[bold]{name}", value)
    _out.print("\n")
    _out.print(table)


def _say(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()


@data_app.command("list")
def data_list() -> None:
    """List the data sets: what, from where, under which licence."""
    from .. import data

    table = RichTable(box=None, padding=(0, 2, 0, 0))
    for heading in ("set", "what", "licence", "size"):
        table.add_column(heading, no_wrap=heading == "set")
    for entry in data.list_datasets():
        table.add_row(entry.slug, entry.summary, entry.licence, entry.size)
    _out.print(table)
    _out.print(f"kept in {data.cache_dir()}", soft_wrap=True)


@data_app.command("get")
def data_get(slug: Annotated[str, typer.Argument(help="A set, as `brenier data list` names it.")]) -> None:
    """Fetch a data set into the cache."""
    from .. import data

    try:
        entry = data.info(slug)
    except ValueError as error:
        _fail(str(error))
    try:
        entry.load()
    except data.DataUnavailable as error:
        _fail(str(error))
    _out.print(f"{slug}: ready in {data.cache_dir()}\n{entry.source}\nlicence: {entry.licence}", soft_wrap=True)

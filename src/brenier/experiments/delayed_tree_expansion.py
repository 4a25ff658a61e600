"""Delayed tree expansion: where the draft goes stale, trees that branch late, and a network that chooses when.

Parts: (A) losslessness by enumeration; (B) verifications on the same trees of a flat pair, and that delaying does not
pay there; (C) acceptance by depth, for the flat pair and for a drafter that goes stale; (D) the best static trees and a
trained selector, on held-out roots by the exact estimator, and decoded; (E) a transformer trained here, whose draft
sees its last hidden state at the root only. The paper's models of 27 to 70 billion weights, and the throughput of
accelerators, are out of reach.
"""

from __future__ import annotations

import itertools
import math
import operator
import time as clock
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from .. import data
from ..systems.decoding.delay_selector import (
    ContextFeatures,
    DelayAndBranchSelector,
    DelayPolicy,
    Traces,
    collect_traces,
    roots,
    train_selector,
)
from ..systems.decoding.delayed_tree_expansion import (
    Action,
    TimeModel,
    all_actions,
    best_action,
    block_efficiencies,
    delayed_tree_decoder,
    measured_time,
)
from ..systems.decoding.generation import scored_tree
from ..systems.decoding.laws import Scheme, draft_tuples, member
from ..systems.decoding.models import LanguageModel, TorchLM
from ..systems.decoding.selectors import (
    KSeqSelector,
    NaiveSelector,
    NSSSelector,
    SpecInferSelector,
    TokenSelector,
)
from ..systems.decoding.tree import DraftTree, branching_matrix, delayed, draft_tree
from ..systems.decoding.verification import Traversal, find_verification
from .ngrams import Pair, character_texts, characters, numbered, source, stale
from .report import Claim, Report
from .runner import Config, Run
from .small_transformer import HiddenStates, StaleDraft, train_head, train_transformer

__all__ = ["PRESETS", "DelayedConfig", "run"]

_CHUNK = 25  # contexts whose trees are held at once
_EVERY = 16  # tokens between roots
_SOLVERS: dict[str, TokenSelector] = {
    "NSS": NSSSelector(),
    "NaiveTree": NaiveSelector(),
    "SpecInfer": SpecInferSelector(),
    "SpecTr": KSeqSelector(),
}
_SETTINGS = tuple(itertools.product((0.05, 0.1, 0.2), (0.02, 0.05)))  # tau, kappa
_CLAIMED = ((0.1, 0.02), (0.2, 0.02))  # where selectors are trained


@dataclass(frozen=True)
class DelayedConfig(Config):
    """Sizes of the parts.

    Attributes:
        corpus: data set of the texts.
        worlds: random pairs of models in (A).
        prompts: held-out contexts a seed in (B) and (C).
        control: contexts a seed for the actions of the flat pair in (B).
        drafts, trunk, branch: largest action.
        train, test: roots a seed in (D).
        trees: sampled for each root.
        epochs: of the selector.
        decoded: prompts that are decoded in (D).
        steps: training steps of the transformer of (E), first seed only; 0 leaves (E) out.
    """

    corpus: str = "brown-corpus"
    worlds: int = 5
    prompts: int = 300
    control: int = 200
    drafts: int = 4
    trunk: int = 8
    branch: int = 8
    train: int = 1500
    test: int = 500
    trees: int = 4
    epochs: int = 40
    decoded: int = 40
    steps: int = 400

    @property
    def actions(self) -> list[Action]:
        """What there is to choose from."""
        return all_actions(self.drafts, self.trunk, self.branch)


PRESETS = {
    "smoke": DelayedConfig(
        "smoke", (100,), corpus="python-topics", worlds=1, prompts=12, control=6, drafts=3, trunk=2, branch=2, train=40,
        test=16, trees=1, epochs=3, decoded=2, steps=2,
    ),
    "quick": DelayedConfig(
        "quick", (100,), prompts=100, control=60, train=500, test=250, trees=2, decoded=16, steps=0
    ),
    "full": DelayedConfig("full", tuple(range(100, 105))),
}  # fmt: skip

_Run = Run[DelayedConfig]


def run(config: DelayedConfig, log: Callable[[str], None] = lambda line: None) -> Report:
    """Run all parts."""
    report = Report(
        "delayed-tree-expansion", "Delayed tree expansion: when to branch", config.preset, list(config.seeds)
    )
    corpus = config.corpus
    try:
        data.get(corpus)
    except data.DataUnavailable as error:
        report.notes.append(f"Texts are python-topics, as {corpus} cannot be had here: {error.tried[-1]}")
        corpus = "python-topics"
    report.data.append(source(corpus))
    parts = _Run(config, report, log)
    _exactness(parts)
    flat = characters(corpus)
    drifting = stale(flat)
    _flat(parts, flat)
    _depths(parts, [flat, drifting])
    _policies(parts, drifting)
    if config.steps:
        _transformer(parts, corpus)
    return report


def _chosen(items: Sequence[Tensor], n: int, generator: torch.Generator) -> list[Tensor]:
    return [items[i] for i in torch.randperm(len(items), generator=generator)[:n].tolist()]


# -- (A) -----------------------------------------------------------------------------------------------------

_TOKENS, _DEPTH = 3, 2


class _World:
    """Random laws of a target and a draft after every text of up to two of three tokens."""

    def __init__(self, generator: torch.Generator) -> None:
        shape = ((_TOKENS + 1) ** _DEPTH, _TOKENS)
        self.p, self.q = (
            (1.5 * torch.randn(*shape, dtype=torch.float64, generator=generator)).softmax(-1) for _ in range(2)
        )

    def code(self, paths: Tensor) -> Tensor:
        """The row of each text."""
        wide = pad(paths, (0, _DEPTH - paths.shape[1]), value=-1)
        return ((wide + 1) * (_TOKENS + 1) ** torch.arange(_DEPTH)).sum(1)

    def every_tree(self, branching: tuple[int, ...]) -> tuple[DraftTree, Tensor]:
        """A forest with one prompt for each outcome of the draws, and the probability of each."""
        draws = list(itertools.accumulate(branching, operator.mul))
        scripts = torch.cartesian_prod(*[torch.arange(_TOKENS)] * sum(draws)).reshape(-1, sum(draws))
        levels = iter(scripts.split(draws, 1))

        def scripted(q: Tensor, k: Tensor, scheme: Scheme, generator: torch.Generator | None) -> Tensor:
            drafts = torch.full((len(q), int(k.max())), -1)
            drafts[torch.arange(drafts.shape[1]) < k.unsqueeze(1)] = next(levels).flatten()
            return drafts

        tree = draft_tree(
            lambda tree, nodes: self.q[self.code(tree.paths[nodes])],
            branching_matrix([branching] * len(scripts)),
            _TOKENS,
            sampler=scripted,
        )
        each = torch.where(tree.drafts >= 0, tree.q.gather(1, tree.drafts.clamp(min=0)), 1)
        return tree.scored(self.p[self.code(tree.paths)]), tree.per_prompt(each.log().sum(1)).exp()

    def bias(self, tree: DraftTree, chance: Tensor, outcomes: Tensor) -> float:
        """How far the law of the first three tokens is from the target's, blocks being followed by the target."""
        length = _DEPTH + 1
        texts = torch.cartesian_prod(*[torch.arange(_TOKENS)] * length)
        each = torch.stack([self.p[self.code(texts[:, :j])].gather(1, texts[:, j : j + 1]) for j in range(length)], 1)
        each = each.squeeze(2)
        weights = outcomes * chance[tree.prompt].unsqueeze(1)
        written = torch.zeros(len(texts), dtype=torch.float64)
        for depth in range(length):
            nodes = tree.depth == depth
            on_the_way = (tree.paths[nodes, :depth] == texts[:, None, :depth]).all(-1)  # (texts, nodes)
            mass = (weights[nodes][:, texts[:, depth]].T * on_the_way).sum(1)
            written += mass * each[:, depth + 1 :].prod(1)
        return float((written - each.prod(1)).abs().max())


def _exactness(parts: _Run) -> None:
    parts.log("(A) exactness")
    generator = torch.Generator().manual_seed(parts.config.seeds[0])
    worlds = [_World(generator) for _ in range(parts.config.worlds)]
    shapes = {"root rollouts": (delayed(2, 0, 2), ""), "delayed": (delayed(2, 1, 1), ""), "path": ((1, 1), "block")}
    methods = ("nss", "naive", "specinfer", "spectr", "traversal")
    table = parts.report.table(
        f"(A) Every tree and outcome, V = {_TOKENS}, {len(worlds)} pairs of models: the law of the text, off by",
        tuple(shapes),
    )
    cells: dict[str, list[float | str]] = {method: [] for method in (*methods, "block")}
    apart, worst = 0.0, 0.0
    for branching, more in shapes.values():
        biases = {method: 0.0 for method in (*methods, more) if method}
        for world in worlds:
            tree, chance = world.every_tree(branching)
            for method in biases:
                bias = world.bias(tree, chance, find_verification(method).outcomes(tree))
                biases[method], worst = max(biases[method], bias), max(worst, bias)
            if more:
                apart = max(apart, _apart_from_block_verification(tree))
        for method, values in cells.items():
            values.append(f"{biases[method]:.1e}" if method in biases else "")
    for method, values in cells.items():
        table.add(method, *values)
    rates = 0.0
    for world, (k, solver) in itertools.product(worlds, itertools.product((1, 2, 3, 4), _SOLVERS.values())):
        tuples, weights = draft_tuples(world.q, k)
        shape = (len(world.q), len(tuples), _TOKENS)
        p, q = world.p.unsqueeze(1).expand(shape), world.q.unsqueeze(1).expand(shape)
        law = solver.branching(p, q, tuples.expand(*shape[:2], k))
        total = (weights * (law * member(tuples, _TOKENS)).sum(-1)).sum(-1)
        rates = max(rates, float((total - solver.acceptance_rate(world.p, world.q, k)).abs().max()))
    parts.report.claims += [
        Claim.at_most("(A) law of the text, off by at most", worst, 1e-10),
        Claim.at_most("(A) sums of branching laws and the formulas of rates differ by", rates, 1e-9),
        Claim.at_most("(A) Traversal with one path and block verification differ by", apart, 1e-10),
    ]


def _apart_from_block_verification(tree: DraftTree) -> float:
    """Where Traversal ends the blocks of single paths, against the weights of block verification."""
    assert tree.p is not None
    weights = [torch.ones(tree.n_prompts, dtype=torch.float64)]
    for nodes in tree.levels[1:]:
        parent, token = tree.parent[nodes], tree.tokens[nodes]
        weights.append((weights[-1] * tree.p[parent, token] / tree.q[parent, token]).clamp(max=1))
    alive, apart = torch.ones_like(weights[0]), 0.0
    ends = Traversal().outcomes(tree).sum(1)
    for nodes, w in zip(tree.levels[::-1], weights[::-1]):
        rest = (w.unsqueeze(1) * tree.p[nodes] - tree.q[nodes]).clamp(min=0).sum(1)
        accept = w if bool(tree.is_leaf[nodes].all()) else rest / (rest + 1 - w)
        apart = max(apart, float((ends[nodes] - alive * accept).abs().max()))
        alive = alive * (1 - accept)
    return apart


# -- (B) -----------------------------------------------------------------------------------------------------


def _on_the_same_trees(
    pair: Pair, prompts: list[Tensor], k: int, methods: Sequence[str], trees: int, generator: torch.Generator
) -> dict[str, float]:
    """Mean block efficiencies of K paths of 8 tokens."""
    totals = dict.fromkeys(methods, 0.0)
    for begin in range(0, len(prompts), _CHUNK):
        contexts = prompts[begin : begin + _CHUNK] * trees
        matrix = branching_matrix([delayed(k, 0, 8)] * len(contexts))
        tree = scored_tree(pair.target, pair.draft, contexts, matrix, generator=generator)
        for method in methods:
            mean = find_verification(method).block_efficiency(tree).sum() / (len(prompts) * trees)
            totals[method] += float(mean)
    return totals


def _is_root(action: Action) -> bool:
    """Whether an action branches at the root, or not at all."""
    return action.num_drafts == 1 or action.trunk_length == 0


def _best_two(efficiencies: Tensor, actions: Sequence[Action], time: TimeModel, lengths: Tensor) -> list[Action]:
    """The best static root tree, and the best delayed one."""
    out = []
    for root in (True, False):
        columns = [a for a, action in enumerate(actions) if _is_root(action) is root]
        out.append(best_action(efficiencies[:, columns], [actions[a] for a in columns], time, lengths)[0])
    return out


def _time(tau: float, kappa: float, context: int) -> TimeModel:
    """In calls of the target on a cached context; a node costs kappa more, a call of the draft tau."""
    return TimeModel(lambda n: tau, lambda n: 1 + kappa * (n - context))


def _flat(parts: _Run, pair: Pair) -> None:
    config, report = parts.config, parts.report
    many, one = ("nss", "naive", "specinfer", "spectr", "traversal"), ("naive", "block")
    measured: dict[str, list[float]] = {f"{method}, K = 4": [] for method in many}
    measured.update({f"{method}, K = 1": [] for method in one})
    control: dict[tuple[float, float], list[float]] = {setting: [] for setting in _SETTINGS}
    for seed in config.seeds:
        parts.log(f"(B) {pair.name}: seed {seed}")
        generator = torch.Generator().manual_seed(seed)
        prompts = pair.prompts(config.prompts, generator)
        for k, methods in ((4, many), (1, one)):
            for method, value in _on_the_same_trees(pair, prompts, k, methods, config.trees, generator).items():
                measured[f"{method}, K = {k}"].append(value)
        contexts = prompts[: config.control]
        actions, lengths = config.actions, torch.full((len(contexts),), pair.context)
        found = block_efficiencies(
            pair.target, pair.draft, contexts, actions, method="specinfer", trees=config.trees, generator=generator
        )
        half = len(contexts) // 2  # one half chooses, the other one measures
        for setting, ratios in control.items():
            time = _time(*setting, pair.context)
            best = _best_two(found[:half], actions, time, lengths[:half])
            root, late = (
                _Measured(found[half:, actions.index(a)], _seconds(time, [a] * (len(contexts) - half), lengths[half:]))
                for a in best
            )
            ratios.append(late.throughput / root.throughput)
    table = report.table(
        f"(B) {pair.name}: block efficiency of paths of 8 tokens, {config.prompts} held-out roots a seed",
        ("block efficiency",),
    )
    for name, values in measured.items():
        table.add(name, values)
    table = report.table(
        f"(B) {pair.name}, SpecInfer: throughput of the best static delayed tree over that of the best root tree, the "
        f"same {config.control - config.control // 2} roots a seed, chosen on {config.control // 2} others",
        ("delayed / root",),
    )
    for (tau, kappa), ratios in control.items():
        table.add(f"tau = {tau}, kappa = {kappa}", ratios)
    mean = {name: sum(values) / len(values) for name, values in measured.items()}
    best_solver = max(mean[f"{method}, K = 4"] for method in many[:-1])
    report.claims += [
        Claim.at_least("(B) K = 4: Traversal over the best rule", mean["traversal, K = 4"] / best_solver, 1.02),
        Claim.at_least("(B) K = 4: NaiveTree less NSS", mean["naive, K = 4"] - mean["nss, K = 4"], 0.0),
        *(
            Claim.at_least(f"(B) K = 4: {method} less NaiveTree", mean[f"{method}, K = 4"] - mean["naive, K = 4"], 0.0)
            for method in ("specinfer", "spectr")
        ),
        Claim.at_least("(B) K = 1: block over token by token", mean["block, K = 1"] / mean["naive, K = 1"], 1.05),
        *(
            Claim.at_most(
                f"(B) negative control, tau = {tau}, kappa = {kappa}: delayed over root tree",
                sum(control[tau, kappa]) / len(config.seeds),
                1.0,
            )
            for tau, kappa in _CLAIMED
        ),
    ]  # fmt: skip


# -- (C) -----------------------------------------------------------------------------------------------------


def _by_depth(
    target: LanguageModel, draft: LanguageModel, contexts: list[Tensor], generator: torch.Generator
) -> dict[str, list[float]]:
    """Mean acceptance rates of four drafts, and L1 distances, at the nodes of drafted paths of 8 tokens."""
    out: dict[str, list[float]] = {}
    tree = scored_tree(target, draft, contexts, branching_matrix([(1,) * 8] * len(contexts)), generator=generator)
    assert tree.p is not None
    for nodes in tree.levels[:-1]:
        p, q = tree.p[nodes], tree.q[nodes]
        for name, solver in _SOLVERS.items():
            out.setdefault(name, []).append(float(solver.acceptance_rate(p, q, 4).mean()))
        out.setdefault("L1(p, q)", []).append(float((p - q).abs().sum(-1).mean()))
    return out


def _spearman(rates: Sequence[float]) -> float:
    """Rank correlation of depths 0 to 4 with the rates there."""
    return round(float(spearmanr(range(5), rates[:5]).statistic), 9)  # tenths, but for rounding


def _depths(parts: _Run, pairs: list[Pair]) -> None:
    config, report = parts.config, parts.report
    figure, axes = plt.subplots(1, len(pairs), figsize=(4.2 * len(pairs), 3.2), sharey=True)
    for ax, pair in zip(axes, pairs):
        runs = []
        for seed in config.seeds:
            parts.log(f"(C) {pair.name}: seed {seed}")
            generator = torch.Generator().manual_seed(seed)
            runs.append(_by_depth(pair.target, pair.draft, pair.prompts(config.prompts, generator), generator))
        names = list(runs[0])
        table = report.table(
            f"(C) {pair.name}: acceptance rates of 4 drafts by depth, on drafted paths, {config.prompts} roots a seed",
            tuple(names),
        )
        means: dict[str, list[float]] = {name: [] for name in names}
        for depth in range(8):
            cells = [[found[name][depth] for found in runs] for name in names]
            table.add(f"depth {depth}", *cells)
            for name, cell in zip(names, cells):
                means[name].append(sum(cell) / len(cell))
        for name in _SOLVERS:
            ax.plot(range(8), means[name], marker="o", label=name)
            if pair is pairs[-1]:
                claim = f"(C) stale drafter, {name}: rank correlation of rate and depth"
                report.claims.append(Claim.at_most(claim, _spearman(means[name]), -0.9))
        ax.set(title=pair.name, xlabel="depth in the tree")
    axes[0].set_ylabel("acceptance rate of 4 drafts")
    axes[0].legend()
    report.figure("depth", "Acceptance rates by depth: flat, and with a drafter that goes stale.", figure)


# -- (D) -----------------------------------------------------------------------------------------------------


class _Measured(NamedTuple):
    """Expected tokens and times at each root."""

    tokens: Tensor
    times: Tensor

    @property
    def throughput(self) -> float:
        return float(self.tokens.sum() / self.times.sum())


def _seconds(time: TimeModel, actions: Sequence[Action], lengths: Tensor) -> Tensor:
    """The time of one action at each root."""
    seconds = [time.seconds(action, n) for action, n in zip(actions, lengths.tolist())]
    return torch.tensor(seconds, dtype=torch.float64)


def _at(traces: Traces, actions: Sequence[Action], time: TimeModel) -> _Measured:
    """What one action at each root brings."""
    columns = torch.tensor([traces.actions.index(action) for action in actions])
    tokens = traces.efficiencies.gather(1, columns.unsqueeze(1)).squeeze(1)
    return _Measured(tokens, _seconds(time, actions, traces.features.lengths))


def _interval(above: _Measured, below: _Measured | None, generator: torch.Generator) -> tuple[float, float]:
    """A 95 % bootstrap interval, over roots, of a throughput or of the ratio of two on the same roots."""
    n = len(above.tokens)
    picks = torch.randint(n, (2000, n), generator=generator)
    ratio = above.tokens[picks].sum(1) / above.times[picks].sum(1)
    if below is not None:
        ratio = ratio / (below.tokens[picks].sum(1) / below.times[picks].sum(1))
    low, high = ratio.quantile(torch.tensor([0.025, 0.975], dtype=ratio.dtype)).tolist()
    return low, high


def _pooled(parts: list[_Measured]) -> _Measured:
    return _Measured(torch.cat([m.tokens for m in parts]), torch.cat([m.times for m in parts]))


def _policies(parts: _Run, pair: Pair) -> None:
    config, report = parts.config, parts.report
    actions = config.actions
    rooted = [action for action in actions if _is_root(action) and sum(action[1:]) <= config.branch]
    names = ("root tree", "delayed tree", "selector", "root tree, Traversal", "selector, lambda = 1")
    static: dict[tuple[float, float], list[float]] = {s: [] for s in _SETTINGS}
    chosen: dict[tuple[float, float], list[str]] = {s: [] for s in _SETTINGS}
    found: dict[tuple[float, float], dict[str, list[_Measured]]] = {s: {n: [] for n in names} for s in _CLAIMED}
    picked: dict[tuple[float, float], list[Action]] = {s: [] for s in _CLAIMED}
    for seed in config.seeds:
        parts.log(f"(D) {pair.name}: seed {seed}")
        generator = torch.Generator().manual_seed(seed)
        features = ContextFeatures(pair.target, pair.draft)  # n-grams have no hidden states
        # training and test roots are of different documents
        train_roots, test_roots = (
            _chosen(roots(texts, _EVERY, pair.context), n, generator)
            for texts, n in ((pair.held_out[::2], config.train), (pair.held_out[1::2], config.test))
        )
        train, test = (
            collect_traces(features, contexts, actions, trees=config.trees, generator=generator)
            for contexts in (train_roots, test_roots)
        )
        from_root, tested = (
            collect_traces(features, some, rooted, method="traversal", trees=config.trees, generator=generator)
            for some in (train_roots[: config.test], test_roots)
        )
        parts.log(f"(D) {pair.name}: seed {seed}, selectors")
        for setting in _SETTINGS:
            time = _time(*setting, pair.context)
            root, late = _best_two(train.efficiencies, actions, time, train.features.lengths)
            n = len(test)
            measured = {names[0]: _at(test, [root] * n, time), names[1]: _at(test, [late] * n, time)}
            static[setting].append(measured[names[1]].throughput / measured[names[0]].throughput)
            chosen[setting].append(f"{tuple(root)} {tuple(late)}")
            if setting not in found:
                continue
            best, _ = best_action(from_root.efficiencies, rooted, time, from_root.features.lengths)
            measured[names[3]] = _at(tested, [best] * n, time)
            # the largest losses of single roots are those of their estimates: the price on them is left to an ablation
            for name, weight in ((names[4], 1.0), (names[2], 0.0)):
                selector = _trained(config, train, time, weight, generator)
                policy = DelayPolicy(selector, features, time)
                taken = policy.choose(test.features)
                measured[name] = _at(test, taken, time)
            picked[setting] += taken
            for name in names:
                found[setting][name].append(measured[name])
            if seed == config.seeds[0] and setting == _CLAIMED[0]:
                _decoded(parts, pair, test_roots, setting, (root, late, policy, best), generator)
    table = report.table(
        f"(D) {pair.name}, SpecInfer: best static actions (K, L1, L2), chosen on {config.train} roots and measured on "
        f"{config.test} others, throughput of the delayed over the root tree",
        ("delayed / root", "root and delayed, first seed"),
    )
    for setting in _SETTINGS:
        tau, kappa = setting
        table.add(f"tau = {tau}, kappa = {kappa}", static[setting], chosen[setting][0])
    _compared(parts, found, names)
    _choices(parts, picked)


def _trained(
    config: DelayedConfig, traces: Traces, time: TimeModel, tail_weight: float, generator: torch.Generator
) -> DelayAndBranchSelector:
    selector, _ = train_selector(
        traces, time, epochs=config.epochs, batch_size=64, tail_weight=tail_weight, generator=generator
    )
    return selector


def _compared(
    parts: _Run, found: dict[tuple[float, float], dict[str, list[_Measured]]], names: tuple[str, ...]
) -> None:
    """Tables, claims and the figure of the policies on the roots of all seeds."""
    report = parts.report
    generator = torch.Generator().manual_seed(parts.config.seeds[0])
    wanted = ((1, 0, 1.01), (2, 0, 1.015), (2, 1, 0.995), (2, 3, 0.985))
    figure, axes = plt.subplots(1, len(found), figsize=(4.2 * len(found), 3.2), sharex=True)
    for ax, ((tau, kappa), measured) in zip(axes, found.items()):
        pooled = {name: _pooled(values) for name, values in measured.items()}
        title = f"tau = {tau}, kappa = {kappa}"
        table = report.table(
            f"(D) {title}: tokens for the time of a target call, {len(pooled[names[0]].tokens)} test roots",
            ("throughput", "95 % interval"),
        )
        for name in names:
            low, high = _interval(pooled[name], None, generator)
            table.add(name, [m.throughput for m in measured[name]], f"{low:.3f} to {high:.3f}")
            value = pooled[name].throughput
            error = [[max(value - low, 0)], [max(high - value, 0)]]
            ax.errorbar(value, name, xerr=error, fmt="o", capsize=3, color="C0")
        table = report.table(
            f"(D) {title}: ratios of throughputs, paired by root (and by tree, where both are SpecInfer)",
            ("ratio", "95 % interval"),
        )
        for a, b, threshold in wanted:
            ratio = pooled[names[a]].throughput / pooled[names[b]].throughput
            low, high = _interval(pooled[names[a]], pooled[names[b]], generator)
            table.add(f"{names[a]} / {names[b]}", ratio, f"{low:.3f} to {high:.3f}")
            report.claims.append(Claim.at_least(f"(D) {title}: {names[a]} over {names[b]}", ratio, threshold))
        ax.set(title=title, xlabel="tokens a target call's time")
        ax.invert_yaxis()
    figure.tight_layout()
    report.figure("policies", "Throughput of policies on test roots, with bootstrap intervals.", figure)


def _choices(parts: _Run, picked: dict[tuple[float, float], list[Action]]) -> None:
    """What the selectors chose at test roots."""
    config = parts.config
    figure, axes = plt.subplots(1, len(picked), figsize=(4.6 * len(picked), 3.4), sharey=True)
    for ax, ((tau, kappa), actions) in zip(axes, picked.items()):
        share = torch.zeros(config.branch + 1, config.trunk + config.branch + 1)
        for action in actions:
            share[action.branch_length, action.trunk_length] += 1 / len(actions)
        image = ax.imshow(share.numpy(), origin="lower", aspect="auto", cmap="Greys")
        mean = sum(action.num_drafts for action in actions) / len(actions)
        ax.set(title=f"tau = {tau}, kappa = {kappa}; mean K = {mean:.2f}", xlabel="trunk L1")
        figure.colorbar(image, ax=ax)
    axes[0].set_ylabel("branch L2")
    parts.report.figure("choices", "Share of the test roots at which selectors choose L1 and L2.", figure)


def _decoded(
    parts: _Run,
    pair: Pair,
    test_roots: list[Tensor],
    setting: tuple[float, float],
    policies: Sequence[Action | DelayPolicy],
    generator: torch.Generator,
) -> None:
    """The same policies in the loop, where equal drafts cost the target once."""
    tau, kappa = setting
    prompts, length = test_roots[: parts.config.decoded], 48
    table = parts.report.table(
        f"(D) decoded, tau = {tau}, kappa = {kappa}: {len(prompts)} prompts of {length} tokens, first seed",
        ("tokens a target call", "tokens for its time"),
    )
    names = ("root tree", "delayed tree", "selector", "root tree, Traversal")
    for name, policy in zip(names, policies):
        method = "traversal" if name == names[-1] else "specinfer"
        decoder = delayed_tree_decoder(pair.target, pair.draft, policy, method)
        out = decoder.generate(prompts, length, generator=generator)
        whole = [block for block in out.blocks if not block.shortened]
        time = sum(1 + tau * block.drafted + kappa * block.nodes for block in whole)
        tokens = sum(len(block.tokens) for block in whole)
        table.add(name, out.block_efficiency, tokens / time if whole else math.nan)


# -- (E) -----------------------------------------------------------------------------------------------------


def _transformer(parts: _Run, corpus: str) -> None:
    config, report = parts.config, parts.report
    generator = torch.Generator().manual_seed(config.seeds[0])
    vocab_size, context = 60, 32
    train_texts, held_out = numbered(character_texts(corpus), vocab_size)
    parts.log(f"(E) transformer: {config.steps} steps")
    text = torch.cat(train_texts)
    module = train_transformer(text, vocab_size, config.steps, generator)
    head = train_head(module, text, vocab_size, config.steps, generator, context=context)
    target, draft = TorchLM(module, vocab_size), StaleDraft(module, head, vocab_size)
    windows = torch.stack(_chosen(roots(held_out, 49, 49), 200, generator))
    with torch.no_grad():
        loss = float(cross_entropy(module(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())) / math.log(2)
    parts.log("(E) transformer: actions")
    actions = all_actions(config.drafts, min(config.trunk, 4), min(config.branch, 4))
    features = ContextFeatures(target, draft, states=(HiddenStates(module, back=1),))
    train_roots, test_roots = (
        _chosen(roots(texts, _EVERY, context), n, generator)
        for texts, n in ((held_out[::2], config.train // 4), (held_out[1::2], config.test // 2))
    )
    found = _by_depth(target, draft, test_roots, generator)
    table = report.table(
        f"(E) transformer ({loss:.2f} bits a character held out) and a recurrent head on its state at the root: "
        "acceptance rates of 4 drafts by depth",
        tuple(found),
    )
    for depth in range(8):
        table.add(f"depth {depth}", *(values[depth] for values in found.values()))
    train, test = (
        collect_traces(features, some, actions, trees=max(config.trees // 2, 1), batch_size=16, generator=generator)
        for some in (train_roots, test_roots)
    )
    # the clock of this machine: the target without a cache, the head with its state at hand
    step = math.inf
    with torch.no_grad():
        for _ in range(20):
            begin = clock.perf_counter()
            head(torch.zeros(1, module.width), torch.zeros(1, 1, dtype=torch.long))
            step = min(step, clock.perf_counter() - begin)
    target_time = measured_time(target, text[: context + 16])
    table = report.table(
        "(E) transformer, SpecInfer: throughput on test roots, with the times of this machine and with a model of them",
        ("root tree", "delayed tree", "selector", "root and delayed"),
    )
    times = {
        "tau = 0.1, kappa = 0.02": _time(0.1, 0.02, context),
        "measured, per second": TimeModel(lambda n: step, target_time),
    }
    for name, time in times.items():
        root, late = _best_two(train.efficiencies, actions, time, train.features.lengths)
        selector = _trained(config, train, time, 0.0, generator)
        policies = ([root] * len(test), [late] * len(test), DelayPolicy(selector, features, time).choose(test.features))
        values = [_at(test, taken, time).throughput for taken in policies]
        table.add(name, *values, f"{tuple(root)} {tuple(late)}")
    milliseconds = " / ".join(f"{1000 * target_time(n):.2f}" for n in (context, context + 8, context + 16))
    report.notes.append(
        f"(E) milliseconds of a target call on {context} / {context + 8} / {context + 16} tokens: {milliseconds}; of a "
        f"step of the head: {1000 * step:.2f}. Wall clock, not asserted."
    )
    claim = "(E) transformer, SpecInfer: rank correlation of rate and depth"
    report.claims.append(Claim.at_most(claim, _spearman(found["SpecInfer"]), -0.9))

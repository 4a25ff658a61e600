"""Optimal MDSD: how far the rules of multi-draft decoding are from the best, at the contexts of real text.

Parts: (A) the dual against the transport problem, the race against enumeration, the greedy rule against its formula;
(B) mean acceptance rates at held-out contexts by formula, for temperatures, numbers of drafts and ways to draw them;
(C) time at the vocabulary of a real model; (D) blocks of one level of drafts, decoded. The paper's models (7B and
more) are out of reach; a pair of n-gram models over words of the help texts of Python stands in.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..systems.decoding.generation import Decoder
from ..systems.decoding.laws import Processing, Scheme, draft_tuples, sample_drafts
from ..systems.decoding.optimal_mdsd import otm_acceptance
from ..systems.decoding.selectors import GreedySelector, KSeqSelector, NaiveSelector, SpecInferSelector
from .ngrams import Pair, source, words
from .report import Claim, Report
from .runner import Config, Run

__all__ = ["PRESETS", "MDSDConfig", "run"]

_SCHEMES: tuple[Scheme, ...] = ("with_replacement", "without_replacement", "greedy")


@dataclass(frozen=True)
class MDSDConfig(Config):
    """Sizes of the parts.

    Attributes:
        instances: random problems of (A), for each way to draw.
        contexts: held-out contexts a seed in (B).
        temperatures, ks: of (B).
        draws: tuples of drafts that the rate of rejection without replacement is averaged over, in (B).
        samples: draws of the greedy rule in (A).
        vocabulary, rows: of (C).
        prompts: of (D), a seed.
    """

    instances: int = 200
    contexts: int = 80
    temperatures: tuple[float, ...] = (0.3, 0.6, 1.0)
    ks: tuple[int, ...] = (2, 4, 8)
    draws: int = 40
    samples: int = 20_000
    vocabulary: int = 49_152
    rows: int = 64
    prompts: int = 60


PRESETS = {
    "smoke": MDSDConfig(
        "smoke", (100,), instances=10, contexts=8, temperatures=(0.3, 1.0), ks=(4,), draws=4, samples=2_000,
        vocabulary=2_000, rows=4, prompts=4,
    ),
    "quick": MDSDConfig("quick", (100,), contexts=60, draws=20),
    "full": MDSDConfig("full", tuple(range(100, 105))),
}  # fmt: skip

_Run = Run[MDSDConfig]


def run(config: MDSDConfig, log: Callable[[str], None] = lambda line: None) -> Report:
    """Run all four parts."""
    report = Report("optimal-mdsd", "Optimal MDSD: the best acceptance rate", config.preset, list(config.seeds))
    report.data.append(source())
    parts = _Run(config, report, log)
    _exactness(parts)
    pair = words()
    _rates(parts, pair)
    _speed(parts)
    _decoding(parts, pair)
    return report


def _random(generator: torch.Generator, *shape: int) -> Tensor:
    return (2 * torch.randn(*shape, dtype=torch.float64, generator=generator)).softmax(-1)


# -- (A) -----------------------------------------------------------------------------------------------------


def _exactness(parts: _Run) -> None:
    parts.log("(A) exactness")
    n, generator = parts.config.instances, torch.Generator().manual_seed(parts.config.seeds[0])
    gap = 0.0
    for scheme in _SCHEMES[:2]:
        for vocab_size, k in ((3, 2), (6, 2), (6, 3)):
            p, q = _random(generator, n, vocab_size), _random(generator, n, vocab_size)
            dual, primal = (otm_acceptance(p, q, k, scheme, method=method) for method in ("dual", "lp"))
            gap = max(gap, float((dual - primal).abs().max()))
    # the race, through cuts at which it must equal the enumeration
    race = 0.0
    for k in (3, 4):
        p, q = _random(generator, n, 6), _random(generator, n, 6)
        alpha, inside = otm_acceptance(p, q, k, "without_replacement", return_set=True)
        tuples, weights = draft_tuples(q, k, "without_replacement")
        cut = 1 + (p * inside).sum(-1) - (weights * inside[:, tuples].all(-1)).sum(-1)
        race = max(race, float((cut - alpha).abs().max()))
    # the greedy rule, over its one random draft
    p, q, k = _random(generator, n, 6), _random(generator, n, 6), 3
    top = q.topk(k - 1, -1).indices
    rest = q.scatter(-1, top, 0)
    rest = rest / rest.sum(-1, keepdim=True)
    law, rate = torch.zeros_like(p), torch.zeros(n, dtype=torch.float64)
    for token in range(6):
        some = rest[:, token] > 0
        drafts = torch.cat([top, torch.full_like(top[:, :1], token)], -1)[some]
        weight = rest[some, token]
        law[some] += weight.unsqueeze(-1) * GreedySelector().branching(p[some], q[some], drafts)
        rate[some] += weight * GreedySelector().acceptance(p[some], q[some], drafts)
    bias = float((law - p).abs().max())
    formula = float((rate - GreedySelector().acceptance_rate(p, q, k)).abs().max())
    # and drawn
    m = parts.config.samples
    one_p, one_q = p[:1].expand(m, -1), q[:1].expand(m, -1)
    drawn = GreedySelector().sample(one_p, one_q, sample_drafts(one_q, k, "greedy", generator), generator)
    expected = float(rate[0])
    error = max((expected * (1 - expected) / m) ** 0.5, 1e-12)
    off = abs(float((drawn.index >= 0).double().mean()) - expected) / error
    parts.report.claims += [
        Claim.at_most("(A) dual and transport problem differ by", gap, 1e-8),
        Claim.at_most("(A) race and enumeration differ by", race, 1e-9),
        Claim.at_most("(A) law of the greedy rule, off by", bias, 1e-10),
        Claim.at_most("(A) greedy rule and its formula differ by", formula, 1e-10),
        Claim.at_most(f"(A) {m} draws of the greedy rule, standard errors off", off, 3.0),
    ]


# -- (B) -----------------------------------------------------------------------------------------------------


def _rates(parts: _Run, pair: Pair) -> None:
    config = parts.config
    names = ("single", "SpecInfer", "K-SEQ", "best WR", "SpecInfer WOR", "best WOR", "greedy")
    measured: dict[tuple[float, int], dict[str, list[float]]] = {}
    excess = 0.0
    for seed in config.seeds:
        parts.log(f"(B) rates: seed {seed}")
        generator = torch.Generator().manual_seed(seed)
        contexts = pair.prompts(config.contexts, generator)
        logits = pair.target.logits(contexts), pair.draft.logits(contexts)
        for temperature in config.temperatures:
            p, q = (Processing(temperature)(z) for z in logits)
            for k in config.ks:
                best = [otm_acceptance(p, q, k, scheme) for scheme in _SCHEMES]
                rejection = SpecInferSelector(replacement=False)
                rates = {
                    "single": NaiveSelector().acceptance_rate(p, q, 1),
                    "SpecInfer": SpecInferSelector().acceptance_rate(p, q, k),
                    "K-SEQ": KSeqSelector().acceptance_rate(p, q, k),
                    "best WR": best[0],
                    "SpecInfer WOR": rejection.acceptance_rate(p, q, k, draws=config.draws, generator=generator),
                    "best WOR": best[1],
                    "greedy": best[2],
                }
                for name, bound in (("SpecInfer", "best WR"), ("K-SEQ", "best WR")):
                    excess = max(excess, float((rates[name] - rates[bound]).max()))
                cell = measured.setdefault((temperature, k), {name: [] for name in names})
                for name in names:
                    cell[name].append(float(rates[name].mean()))
    table = parts.report.table(
        f"(B) {pair.name}: mean acceptance rates at {config.contexts} held-out contexts a seed; WR and WOR are drafts "
        "with and without replacement",
        names,
    )
    for (temperature, k), cell in measured.items():
        table.add(f"T = {temperature}, k = {k}", *(cell[name] for name in names))
    parts.report.claims.append(Claim.at_most("(B) a rule above its bound by at most", excess, 1e-9))
    if 4 not in config.ks:
        return

    def gain(temperature: float, better: str, worse: str) -> float:
        cell = measured[temperature, 4]
        return sum(a - b for a, b in zip(cell[better], cell[worse])) / len(cell[better])

    parts.report.claims += [
        Claim.at_least("(B) T = 1, k = 4: best WR less K-SEQ", gain(1.0, "best WR", "K-SEQ"), 0.02),
        Claim.at_least("(B) T = 1, k = 4: best WR less SpecInfer", gain(1.0, "best WR", "SpecInfer"), 0.03),
        Claim.at_least("(B) T = 1, k = 4: best WOR less best WR", gain(1.0, "best WOR", "best WR"), 0.005),
        Claim.at_least("(B) T = 1, k = 4: best WR less greedy", gain(1.0, "best WR", "greedy"), 0.0),
        Claim.at_least("(B) T = 0.3, k = 4: best WOR less best WR", gain(0.3, "best WOR", "best WR"), 0.05),
        Claim.at_least("(B) T = 0.3, k = 4: greedy less SpecInfer WOR", gain(0.3, "greedy", "SpecInfer WOR"), 0.0),
        Claim.at_least("(B) T = 0.3, k = 4: greedy less best WR", gain(0.3, "greedy", "best WR"), 0.0),
    ]


# -- (C) -----------------------------------------------------------------------------------------------------


def _speed(parts: _Run) -> None:
    parts.log("(C) time")
    config, generator = parts.config, torch.Generator().manual_seed(parts.config.seeds[0])
    p, q = _random(generator, config.rows, config.vocabulary), _random(generator, config.rows, config.vocabulary)
    table = parts.report.table(f"(C) seconds, {config.vocabulary} tokens, k = 4", ("rows", "seconds"))
    for label, rows, scheme in (("with replacement", config.rows, _SCHEMES[0]), ("without", 1, _SCHEMES[1])):
        begin = time.perf_counter()
        otm_acceptance(p[:rows], q[:rows], 4, scheme)
        seconds = time.perf_counter() - begin
        table.add(f"best rate, drafts {label}", rows, seconds)
        parts.report.claims.append(Claim.at_most(f"(C) seconds for {rows} rows, drafts {label}", seconds, 5.0))


# -- (D) -----------------------------------------------------------------------------------------------------


def _decoding(parts: _Run, pair: Pair) -> None:
    config, length = parts.config, 24
    lengths: dict[str, list[float]] = {"greedy": [], "spectr": []}
    for seed in config.seeds:
        parts.log(f"(D) decoding: seed {seed}")
        generator = torch.Generator().manual_seed(seed)
        prompts = pair.prompts(config.prompts, generator)
        for method, values in lengths.items():
            decoder = Decoder(pair.target, pair.draft, method, (4,), temperature=0.3)
            values.append(decoder.generate(prompts, length, generator=generator).block_efficiency)
    table = parts.report.table(
        f"(D) {pair.name}: one level of 4 drafts at T = 0.3, {config.prompts} prompts of {length} tokens a seed",
        ("tokens a target call",),
    )
    for method, values in lengths.items():
        table.add(method, values)
    means = {method: sum(values) / len(values) for method, values in lengths.items()}
    parts.report.claims.append(
        Claim.at_least("(D) tokens a call, greedy less K-SEQ", means["greedy"] - means["spectr"], 0.0)
    )

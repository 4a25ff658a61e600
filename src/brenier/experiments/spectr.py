"""SpecTr: block efficiency of many drafts against one, on n-gram pairs of real text, and what theory promises.

Parts: (A) random laws against the transport problem; (B) target calls saved by K drafts of L tokens, for a pair of
character models and a pair of word models, by the exact expectation given sampled trees; (C) the law of the text; (D)
text of a real language model, SmolLM2-135M, drafted by 3-grams over its tokens, with the clock beside.
PaLM-2, LM1B and the clock of an accelerator are out of reach; n-gram models of the help texts of Python stand in.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import chi2_contingency
from torch import Tensor

from .. import data
from ..errors import MissingExtra
from ..systems.decoding.generation import Decoder, scored_tree
from ..systems.decoding.models import NGramLM
from ..systems.decoding.optimal_mdsd import otm_acceptance
from ..systems.decoding.selectors import KSeqSelector, kseq_division_factor
from ..systems.decoding.spectr import speculative_sampler
from ..systems.decoding.tree import branching_matrix, delayed
from ..systems.decoding.verification import block_efficiency_bound, find_verification
from .ngrams import Pair, characters, source, words
from .report import Claim, Report
from .runner import Config, Run

__all__ = ["PRESETS", "SpecTrConfig", "run"]

_CHUNK = 25  # contexts whose trees are held at once
_METHODS = ("nss", "naive", "spectr", "specinfer", "traversal")
_DRAFTS = (1, 2, 4, 8)
_LENGTH = 8
_PROMPT, _WRITTEN = 40, 64  # tokens of a text in (D)


@dataclass(frozen=True)
class SpecTrConfig(Config):
    """Sizes of the parts.

    Attributes:
        pairs: of random laws in (A), for each number of drafts.
        prompts: held-out contexts a seed in (B).
        words: whether (B) has the pair of word models too.
        tokens: of each of the two samples of (C).
        texts: that SmolLM2 writes in (D), for each number of drafts.
    """

    pairs: int = 500
    prompts: int = 150
    words: bool = True
    tokens: int = 50_000
    texts: int = 0


PRESETS = {
    "smoke": SpecTrConfig("smoke", (100,), pairs=20, prompts=6, words=False, tokens=2_000),
    "quick": SpecTrConfig("quick", (100,), prompts=100),
    "full": SpecTrConfig("full", tuple(range(100, 105)), texts=20),
}

_Run = Run[SpecTrConfig]


def run(config: SpecTrConfig, log: Callable[[str], None] = lambda line: None) -> Report:
    """Run all three parts."""
    report = Report("spectr", "SpecTr: K drafts and the rule of transport", config.preset, list(config.seeds))
    report.data.append(source())
    parts = _Run(config, report, log)
    _theory(parts)
    letters = characters()
    _efficiency(parts, letters, 1.25)
    if config.words:
        _efficiency(parts, words(), 1.12)
    _law(parts, letters)
    if config.texts:
        _real_model(parts)
    return report


# -- (A) -----------------------------------------------------------------------------------------------------


def _theory(parts: _Run) -> None:
    parts.log("(A) random laws")
    generator = torch.Generator().manual_seed(parts.config.seeds[0])
    table = parts.report.table(
        f"(A) {parts.config.pairs} random pairs of laws on 5 tokens: mean acceptance rates",
        ("one draft", "K-SEQ", "best", "least K-SEQ / best"),
    )
    guarantee, excess = [], []
    for k in (2, 3, 4):
        p, q = (
            (2 * torch.randn(parts.config.pairs, 5, generator=generator, dtype=torch.float64)).softmax(-1)
            for _ in range(2)
        )
        best = otm_acceptance(p, q, k, method="lp")
        rate = KSeqSelector().acceptance_rate(p, q, k)
        beta = torch.minimum(p / kseq_division_factor(p, q, k).unsqueeze(-1), q).sum(-1)
        guarantee.append(float((1 - (1 - beta) ** k - (1 - (1 - 1 / k) ** k) * best).min()))
        excess.append(float((rate - best).max()))
        single = torch.minimum(p, q).sum(-1)
        table.add(f"k = {k}", float(single.mean()), float(rate.mean()), float(best.mean()), float((rate / best).min()))
    parts.report.claims += [
        Claim.at_least("(A) p_acc less (1 - (1 - 1/k)^k) alpha, at least", min(guarantee), -1e-9),
        Claim.at_most("(A) K-SEQ above the best rate by at most", max(excess), 1e-9),
    ]


# -- (B) -----------------------------------------------------------------------------------------------------


def _measured(
    pair: Pair, prompts: list[Tensor], k: int, methods: Sequence[str], generator: torch.Generator
) -> list[float]:
    """Mean block efficiency of each method on the same trees, and their bound."""
    totals = torch.zeros(len(methods) + 1, dtype=torch.float64)
    for begin in range(0, len(prompts), _CHUNK):
        contexts = prompts[begin : begin + _CHUNK]
        matrix = branching_matrix([delayed(k, 0, _LENGTH)] * len(contexts))
        tree = scored_tree(pair.target, pair.draft, contexts, matrix, generator=generator)
        for i, method in enumerate(methods):
            totals[i] += find_verification(method).block_efficiency(tree).sum()
        totals[-1] += block_efficiency_bound(tree).sum()
    return (totals / len(prompts)).tolist()


def _efficiency(parts: _Run, pair: Pair, threshold: float) -> None:
    config, report = parts.config, parts.report
    spectr: dict[int, list[float]] = {k: [] for k in _DRAFTS}
    bounds: dict[int, list[float]] = {k: [] for k in _DRAFTS}
    others: dict[str, list[float]] = {method: [] for method in _METHODS}
    for seed in config.seeds:
        parts.log(f"(B) {pair.name}: seed {seed}")
        generator = torch.Generator().manual_seed(seed)
        prompts = pair.prompts(config.prompts, generator)
        for k in _DRAFTS:
            methods = _METHODS if k == _DRAFTS[-1] else ("spectr",)
            *values, bound = _measured(pair, prompts, k, methods, generator)
            spectr[k].append(values[methods.index("spectr")])
            bounds[k].append(bound)
            if len(methods) > 1:
                for method, value in zip(methods, values):
                    others[method].append(value)
    table = report.table(
        f"(B) {pair.name}: block efficiency of K drafts of {_LENGTH} tokens, {config.prompts} held-out prompts a seed",
        ("SpecTr", "bound of any verification", "over one draft"),
    )
    for k in _DRAFTS:
        table.add(f"K = {k}", spectr[k], bounds[k], [a / b for a, b in zip(spectr[k], spectr[1])])
    table = report.table(f"(B) {pair.name}: methods on the same trees, K = {_DRAFTS[-1]}", ("block efficiency",))
    for method in _METHODS:
        table.add(method, others[method])
    means = {k: sum(values) / len(values) for k, values in spectr.items()}
    report.claims += [
        Claim.at_least(f"(B) {pair.name}: K = 8 over K = 1", means[8] / means[1], threshold),
        Claim.at_least(
            f"(B) {pair.name}: least gain of twice the drafts",
            min(means[b] - means[a] for a, b in itertools.pairwise(_DRAFTS)),
            0.0,
        ),
    ]


# -- (C) -----------------------------------------------------------------------------------------------------


def _law(parts: _Run, pair: Pair) -> None:
    """Short continuations of the same prompts, by SpecTr and token by token."""
    parts.log("(C) the law of the text")
    config = parts.config
    generator = torch.Generator().manual_seed(config.seeds[0])
    length = 10
    prompts = pair.prompts(config.tokens // length, generator)
    counts = []
    for plain in (True, False):
        options: dict[str, Any] = {"branching": ()} if plain else {}
        sampler = speculative_sampler(pair.target, pair.draft, **options)
        written = []
        for begin in range(0, len(prompts), 250):
            out = sampler.generate(prompts[begin : begin + 250], length, generator=generator)
            written += out.tokens
        counts.append(torch.bincount(torch.cat(written), minlength=pair.target.vocab_size))
    both = torch.stack(counts)
    often = both.sum(0).argsort(descending=True)[:200]
    often = often[both[:, often].sum(0) >= 10]
    pvalue = float(chi2_contingency(both[:, often].numpy()).pvalue)
    table = parts.report.table(f"(C) {int(both[0].sum())} characters by either way", ("symbols compared", "p-value"))
    table.add("SpecTr and plain sampling", len(often), pvalue)
    parts.report.claims.append(Claim.at_least("(C) p-value of equal frequencies", pvalue, 1e-3))


# -- (D) -----------------------------------------------------------------------------------------------------


def _real_model(parts: _Run) -> None:
    """Beginnings of held-out texts, continued by SmolLM2 with K drafts of 3-grams over its tokens."""
    config, report = parts.config, parts.report
    try:
        model, tokenizer = data.smollm2()
    except (data.DataUnavailable, MissingExtra) as error:
        report.notes.append(f"(D) is left out: {error}")
        return
    from ..systems.decoding.huggingface import HuggingFaceLM  # needs transformers

    target = HuggingFaceLM(model)
    topics = tokenizer(list(data.python_topics().values()), add_special_tokens=False)["input_ids"]
    long = [torch.tensor(text) for text in topics if len(text) >= _PROMPT]
    step = len(long) // config.texts
    held_out = long[::step][: config.texts]
    draft = NGramLM([text for i, text in enumerate(long) if i % step], target.vocab_size, 3)
    ways = {"token by token": Decoder(target)}
    ways |= {f"K = {k}": speculative_sampler(target, draft, k, _LENGTH) for k in _DRAFTS}
    table = report.table(
        f"(D) SmolLM2-135M and 3-grams: {config.texts} held-out texts, {_WRITTEN} tokens each",
        ("block efficiency", "target calls", "tokens a second"),
    )
    efficiency = []
    for name, decoder in ways.items():
        blocks, calls, begin = [], 0, time.perf_counter()
        for seed, text in enumerate(held_out):
            parts.log(f"(D) {name}: text {seed + 1} of {len(held_out)}")
            target.reset()
            generator = torch.Generator().manual_seed(config.seeds[0] + seed)
            out = decoder.generate(text[:_PROMPT], _WRITTEN, generator=generator)
            blocks.append(out.block_lengths)
            calls += out.target_calls
        efficiency.append(float(torch.cat(blocks).double().mean()))
        speed = _WRITTEN * len(held_out) / (time.perf_counter() - begin)
        table.add(name, efficiency[-1], calls, speed)
    report.claims += [
        Claim.at_least("(D) SmolLM2: K = 8 over K = 1", efficiency[-1] / efficiency[1], 1.0),
        Claim.at_least(
            "(D) SmolLM2: least gain of twice the drafts",
            min(b - a for a, b in itertools.pairwise(efficiency[1:])),
            0.0,
        ),
    ]

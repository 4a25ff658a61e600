"""SpecTr as its users call it; the mathematics is pinned in the tests of its parts."""

from __future__ import annotations

import pytest
import torch
from worlds import Markov

from brenier import InvalidInput
from brenier.experiments import start
from brenier.systems.catalogue import find
from brenier.systems.decoding.spectr import speculative_sampler


def test_more_drafts_need_fewer_calls():
    calls = []
    for num_drafts in (1, 4):
        sampler = speculative_sampler(Markov(0, 6), Markov(1, 6), num_drafts, 4)
        out = sampler.generate([torch.tensor([0])] * 40, 30, generator=torch.Generator().manual_seed(0))
        assert [len(text) for text in out.tokens] == [30] * 40
        assert max(len(block.tokens) for block in out.blocks) <= 5
        calls.append(out.block_efficiency)
    assert calls[1] > calls[0] > 1


def test_options_go_to_the_decoder():
    sampler = speculative_sampler(Markov(0), Markov(1), 3, 2, temperature=0.5, top_k=2)
    assert (sampler.branching, sampler.temperature, sampler.top_k) == ((3, 1), 0.5, 2)


def test_refusals():
    for sizes in ((0, 2), (2, 0), (1.5, 2)):
        with pytest.raises(InvalidInput, match=r"num_drafts|draft_length"):
            speculative_sampler(Markov(0), Markov(1), *sizes)


def test_on_the_shelf():
    assert find("spectr").on_shelf


@pytest.mark.slow
def test_smoke_measures_every_claim():
    report = start("spectr", "smoke")
    assert [claim.sentence[:3] for claim in report.claims] == ["(A)", "(A)", "(B)", "(B)", "(C)"]
    assert all(table.rows for table in report.tables)

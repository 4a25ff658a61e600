"""The list of the forty systems: slug, wing, name, one line, paper; and whether a system is on the shelf."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib.util import find_spec

from ..errors import refuse

__all__ = ["CATALOGUE", "System", "find"]


@dataclass(frozen=True)
class System:
    """One published system.

    Attributes:
        slug: what people type.
        wing: the field of its users.
        title: its usual name.
        summary: what it is for, in one line.
        arxiv: the paper.
    """

    slug: str
    wing: str
    title: str
    summary: str
    arxiv: str

    @property
    def module(self) -> str:
        """The Python module that holds the system, whether it exists yet or not."""
        return f"brenier.systems.{self.wing}.{self.slug.replace('-', '_')}"

    @property
    def experiment(self) -> str:
        """The Python module that holds its experiment."""
        return f"brenier.experiments.{self.slug.replace('-', '_')}"

    @property
    def on_shelf(self) -> bool:
        """Whether the system can be used in this version."""
        if find_spec(f"brenier.systems.{self.wing}") is None:
            return False
        return find_spec(self.module) is not None and find_spec(self.experiment) is not None


def _wing(wing: str, *systems: tuple[str, str, str, str]) -> list[System]:
    return [System(slug, wing, title, summary, arxiv) for slug, title, summary, arxiv in systems]


CATALOGUE: tuple[System, ...] = (
    *_wing(
        "numerics",
        ("sns", "SNS", "Sinkhorn with sparse Newton iterations: high accuracy at small epsilon", "2401.12253"),
        ("sparsity-constrained", "Sparsity-constrained OT", "plans with at most k entries a column", "2209.15466"),
    ),
    *_wing(
        "cells",
        ("lot", "LOT", "cohorts of point clouds as vectors whose geometry approximates Wasserstein-2", "2510.22033"),
        ("monge-gap", "Monge gap", "learn transport maps for any cost and any network", "2302.04953"),
        ("conditional-monge-gap", "CMonge", "one perturbation map for all drugs, doses and times", "2504.08328"),
        ("det", "DET", "non-rigid registration of sections: positions and signals together", "2603.21235"),
    ),
    *_wing(
        "molecules",
        ("orma", "ORMA", "find the molecule that a text describes, grain by grain", "2411.11875"),
        ("plasma", "PLASMA", "which residues of two proteins correspond, and how well", "2510.11752"),
        ("ts-gen", "TS-GEN", "generate transition states of reactions by flow matching", "2507.10530"),
    ),
    *_wing(
        "medicine",
        (
            "dementia-otda",
            "Dementia-OTDA",
            "fuse speech and transcript to screen for dementia, calibrated",
            "2305.16406",
        ),
        ("motcat", "MOTCat", "match tissue tiles with gene sets to predict survival", "2306.08330"),
        ("otsurv", "OTSurv", "pool slides by transport to prototypes to predict survival", "2506.20741"),
    ),
    *_wing(
        "shapes",
        ("mesh-deformation", "DDOT", "deform a mesh onto a surface by sliced transport of varifolds", "2305.17555"),
        ("shape-correspondence", "EOT-Correspondence", "dense maps between deformable surfaces", "2403.01781"),
    ),
    *_wing(
        "vision",
        ("dot-restoration", "DOT", "tune any image restorer between fidelity and realism", "2306.02342"),
        ("feature-optimal-alignment", "FOA", "measure how attacks transfer between your own models", "2505.21494"),
        ("reynolds-flow", "ReynoldsFlow", "cheap motion fields from the transport of densities", "2503.04500"),
        ("sigma", "SIGMA", "pre-train video encoders on Sinkhorn cluster assignments", "2407.15447"),
        ("sp2ot", "SP2OT", "cluster long-tailed data by semantic partial transport", "2404.03446"),
    ),
    *_wing(
        "generative",
        ("dpm-ot", "DPM-OT", "few-step diffusion sampling by a semi-discrete transport map", "2307.11308"),
        ("kinetic-optimal-paths", "KO paths", "the cheapest probability path for your data", "2306.06626"),
        ("otip", "OTIP", "invert and edit images with a transport-guided rectified flow", "2508.02363"),
        ("pisces", "PISCES", "rewards for text-to-video from aligned embeddings", "2602.01624"),
        ("w-cfm", "W-CFM", "straighter flows by weighting pairs, without a solver", "2507.22270"),
    ),
    *_wing(
        "decoding",
        ("delayed-tree-expansion", "NDE", "speculative decoding with trees that branch late", "2602.16994"),
        ("optimal-mdsd", "Optimal MDSD", "the best acceptance rate of multi-draft decoding", "2502.18779"),
        ("spectr", "SpecTr", "lossless multi-draft speculative decoding by transport", "2310.15141"),
    ),
    *_wing(
        "language",
        ("activation-transport", "Activation transport", "steer a language model by Gaussian transport", "2603.04355"),
        ("ctc-ot", "CTC-OT", "pre-train speech translation across the modality gap", "2301.11716"),
        ("otseq2set", "OTSeq2Set", "tag documents with label sets of any size", "2210.14523"),
        ("remote", "REMOTE", "relations between texts and objects from all layers", "2509.04844"),
        ("transformer-fusion", "Transformer fusion", "average transformers after aligning their neurons", "2310.05719"),
    ),
    *_wing(
        "selection",
        ("goracs", "GORACS", "choose the prompts that fine-tune a recommender", "2506.04015"),
        ("projektor", "projektor", "predict accuracy of data mixtures before buying", "2307.02460"),
        ("tarot", "TAROT", "which candidates to train on, and how many", "2412.00420"),
    ),
    *_wing(
        "control",
        ("d2oc", "D2OC", "robots that cover a density without a central planner", "2511.12756"),
        ("pearl", "PEARL", "move preferences to a new task by Gromov-Wasserstein alignment", "2306.03615"),
        ("policy-gradient-igt", "N-PG-IGT", "policy gradients with few trajectories", "2302.01734"),
    ),
    *_wing(
        "training",
        ("adversarial-adaptive-sampling", "AAS", "place collocation points where a PDE solver errs", "2305.18702"),
        ("polystep", "PolyStep", "train networks without gradients by transport steps", "2605.01928"),
    ),
)


def find(slug: str) -> System:
    """The system of this slug.

    Raises:
        InvalidInput: there is none; the message names close ones.
    """
    for system in CATALOGUE:
        if system.slug == slug:
            return system
    near = difflib.get_close_matches(slug, [s.slug for s in CATALOGUE], n=3)
    cure = f"Did you mean {' or '.join(near)}?" if near else "`brenier list` shows them all."
    refuse("SLUG", "the slug of a system", repr(slug), cure)

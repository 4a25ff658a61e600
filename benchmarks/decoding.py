"""Speculative decoding at the vocabulary of a real model: bounds, rules, and the verification of whole trees.

One process, one thread. Laws are softmaxes of Gaussian logits; the draft's are the target's with noise. Times are the
least of several rounds; as a yardstick each is also given in passes over the laws (one float64 softmax of both), in
the same run. Then the block efficiency of methods on the same trees is compared with the bound, and the estimates of
all actions of delayed trees from shared trees with those from trees of their own.

    python benchmarks/decoding.py [--rounds 3] [--vocabulary 49152]
"""

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import argparse  # noqa: E402
import time  # noqa: E402

import torch  # noqa: E402

from brenier.experiments.ngrams import characters  # noqa: E402
from brenier.systems.decoding.delayed_tree_expansion import all_actions, block_efficiencies  # noqa: E402
from brenier.systems.decoding.optimal_mdsd import otm_acceptance  # noqa: E402
from brenier.systems.decoding.selectors import KSeqSelector, SpecInferSelector  # noqa: E402
from brenier.systems.decoding.tree import branching_matrix, delayed, draft_tree  # noqa: E402
from brenier.systems.decoding.verification import block_efficiency_bound, find_verification  # noqa: E402

METHODS = ("nss", "naive", "spectr", "specinfer", "traversal")


def least(function, rounds):
    """The result, and the least time of several rounds."""
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        out = function()
        best = min(best, time.perf_counter() - start)
    return out, best


def laws(rows, vocab_size, generator, noise=1.5, peak=3.0):
    target = peak * torch.randn(rows, vocab_size, dtype=torch.float64, generator=generator)
    other = target + noise * torch.randn(rows, vocab_size, dtype=torch.float64, generator=generator)
    return target.softmax(-1), other.softmax(-1)


def scored(branching, n_prompts, vocab_size, generator):
    """A tree whose laws are random at every node."""
    made = {}

    def law(tree, nodes):
        p, q = laws(len(nodes), vocab_size, generator)
        made.update({int(c): row for c, row in zip(nodes, p)})
        return q

    tree = draft_tree(law, branching_matrix([branching] * n_prompts), vocab_size, generator=generator)
    p = torch.stack([made[c] if c in made else laws(1, vocab_size, generator)[0][0] for c in range(len(tree))])
    return tree.scored(p)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, default=49_152)
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    V, rounds = options.vocabulary, options.rounds

    print(f"V = {V}, one thread, float64, least of {rounds} rounds\n")
    print("| what | rows | seconds | in softmaxes of p and q |\n|---|---|---|---|")

    def line(label, rows, function, p, q):
        _, seconds = least(function, rounds)
        if p.shape not in units:
            units[p.shape] = least(lambda: (p.softmax(-1), q.softmax(-1)), 10)[1]
        print(f"| {label} | {rows} | {seconds:.4f} | {seconds / units[p.shape]:.1f} |", flush=True)

    units = {}

    p, q = laws(64, V, generator)
    line("bound, with replacement, k = 4", 64, lambda: otm_acceptance(p, q, 4), p, q)
    line("bound, without replacement, k = 2", 64, lambda: otm_acceptance(p, q, 2, "without_replacement"), p, q)
    line("bound, greedy, k = 4", 64, lambda: otm_acceptance(p, q, 4, "greedy"), p, q)
    one = p[:1], q[:1]
    line("bound, without replacement, k = 4", 1, lambda: otm_acceptance(*one, 4, "without_replacement"), *one)
    line("rate of K-SEQ, k = 4", 64, lambda: KSeqSelector().acceptance_rate(p, q, 4), p, q)
    line("rate of SpecInfer, k = 4", 64, lambda: SpecInferSelector().acceptance_rate(p, q, 4), p, q)
    for n_prompts in (1, 8):
        tree = scored(delayed(4, 0, 8), n_prompts, V, generator)
        for method in METHODS:
            verification = find_verification(method)
            label = f"verify 4 paths of 8, {method}, {n_prompts} prompts"
            line(label, len(tree), lambda v=verification, t=tree: v.verify(t, generator), tree.p, tree.q)

    small = 2000
    print(f"\nBlock efficiency of 4 paths of 8 on the same {64} trees, V = {small}, exact given the trees\n")
    print("| method | mean | share of the bound |\n|---|---|---|")
    tree = scored(delayed(4, 0, 8), 64, small, generator)
    bound = float(block_efficiency_bound(tree).mean())
    for method in METHODS:
        mean = float(find_verification(method).block_efficiency(tree).mean())
        print(f"| {method} | {mean:.3f} | {mean / bound:.3f} |")
    print(f"| bound | {bound:.3f} | 1 |")

    print("\nBlock efficiency of delayed trees, SpecInfer, n-grams over characters, milliseconds a context\n")
    print("| what | nodes a context | milliseconds |\n|---|---|---|")
    pair = characters()
    contexts = pair.prompts(64, generator)
    actions = all_actions()

    def estimate(chosen):
        block_efficiencies(pair.target, pair.draft, contexts, chosen, method="specinfer", trees=1, generator=generator)

    some = actions[::10]
    _, alone = least(lambda: [estimate([action]) for action in some], rounds)
    nodes = sum(action.trunk_length + action.num_drafts * action.branch_length for action in some)
    scale = len(actions) / len(some) / len(contexts)
    nodes *= len(actions) / len(some)
    print(f"| each action alone (from {len(some)}) | {nodes:.0f} | {1e3 * alone * scale:.1f} |")
    _, shared = least(lambda: estimate(actions), rounds)
    nodes = sum(trunk + 32 for trunk in range(9)) + 16
    print(f"| all {len(actions)} from shared trees | {nodes} | {1e3 * shared / len(contexts):.1f} |")


if __name__ == "__main__":
    main()

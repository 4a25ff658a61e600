"""Speculative decoding at the vocabulary of a real model: bounds, rules, and the verification of whole trees.

One process, one thread. Laws are softmaxes of Gaussian logits; the draft's are the target's with noise. Times are the
least of several rounds; as a yardstick each is also given in softmaxes (of one law a row, in float64, in the same run),
and the same rule in plain PyTorch stands beside it, node by node (`rivals/decoding.py`). Then the block efficiency of
methods on the same trees is compared with the bound, and the estimates of all actions of delayed trees from shared
trees with those from trees of their own.

The last part writes text with SmolLM2-135M: `transformers` by itself, with its assisted generation and prompt lookup,
and drafts by n-gram models over prompt and manual, and by the first layers of the model, with a linear map fitted on
the manual before the head. Speeds are of one run each; tokens a call do not depend on the machine.

    python benchmarks/decoding.py [--rounds 5] [--vocabulary 150000] [--tokens 32] [--prompts 3] [--layers 10]
"""

import argparse
import time

import torch
from rivals import decoding as plain

from brenier.experiments.ngrams import characters
from brenier.systems.decoding.delayed_tree_expansion import all_actions, block_efficiencies
from brenier.systems.decoding.optimal_mdsd import otm_acceptance
from brenier.systems.decoding.selectors import KSeqSelector, SpecInferSelector
from brenier.systems.decoding.tree import branching_matrix, delayed, draft_tree
from brenier.systems.decoding.verification import block_efficiency_bound, find_verification

METHODS = ("nss", "naive", "spectr", "specinfer", "tournament", "traversal")


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


QUESTIONS = (
    "Explain in a few sentences why the sky is blue.",
    "Write a short story about a lighthouse keeper and a storm.",
    "Give me a recipe for a vegetable soup, step by step.",
    "What is the difference between a list and a tuple in Python?",
    "Summarise how a bill becomes a law in the United States.",
)
PASSAGES = (
    "The harbour master counted nineteen boats before noon, three of them from the northern islands, and wrote the "
    "name of each one and the hour of its arrival into the blue book that lay on the window sill.",
    "To reset the meter, hold the left button for five seconds until the display shows the letters CAL, release it, "
    "press the right button twice, and wait until the number on the display no longer changes.",
    "On Tuesday the committee agreed to repair the old bridge, to paint the school in yellow and white, and to plant "
    "forty lime trees along the road from the station to the market square.",
)


def end_to_end(options):
    """Tokens per second, calls and tokens a call on a real model."""
    from brenier import data
    from brenier.errors import MissingExtra
    from brenier.systems.decoding.generation import Decoder
    from brenier.systems.decoding.huggingface import HuggingFaceLM, early_exit
    from brenier.systems.decoding.laws import Processing
    from brenier.systems.decoding.models import NGramLM

    try:
        model, tokenizer = data.smollm2()
    except (data.DataUnavailable, MissingExtra) as error:
        print(f"\nNo text is written: {error}")
        return
    torch.set_num_threads(options.threads)
    model.generation_config.eos_token_id = None  # every text has the same length
    start = time.perf_counter()
    manual = tokenizer(list(data.python_topics().values()), add_special_tokens=False)["input_ids"]
    texts = [torch.tensor(text[:512]) for text in manual if len(text) >= 128][: options.fit]
    exit = early_exit(model, options.layers, texts)
    fitted = time.perf_counter() - start
    exit.generation_config.num_assistant_tokens = 4
    exit.generation_config.num_assistant_tokens_schedule = "constant"
    exit.generation_config.assistant_confidence_threshold = 0.0
    target, shallow = HuggingFaceLM(model), HuggingFaceLM(exit)
    calls = []
    model.register_forward_pre_hook(lambda module, args: calls.append(1))

    def read(question):
        chat = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]

    def theirs(sampled, **more):
        law = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sampled else {"do_sample": False}

        def write(prompt, seed):
            torch.manual_seed(seed)
            mask, n = torch.ones_like(prompt), options.tokens
            model.generate(
                prompt, attention_mask=mask, max_new_tokens=n, min_new_tokens=n, pad_token_id=2, **law, **more
            )

        return write

    def ours(sampled, draft=None, method="block", branching=(), **more):
        def write(prompt, seed):
            target.reset()
            shallow.reset()
            chosen = draft(prompt[0]) if draft else None
            decoder = Decoder(target, chosen, method, branching, temperature=float(sampled), **more)
            decoder.generate(prompt, options.tokens, generator=torch.Generator().manual_seed(seed))

        return write

    def table(prompts, rows):
        print("| what | tokens/s | beside transformers | calls | tokens a call |\n|---|---|---|---|---|")
        written, plain = len(prompts) * options.tokens, None
        rows["transformers"](prompts[0], 0)  # warm-up
        for label, write in rows.items():
            calls.clear()
            start = time.perf_counter()
            for seed, prompt in enumerate(prompts):
                write(prompt, seed)
            speed = written / (time.perf_counter() - start)
            plain = plain or speed
            cells = (label, f"{speed:.1f}", f"{speed / plain:.2f}", str(len(calls)), f"{written / len(calls):.2f}")
            print("| " + " | ".join(cells) + " |", flush=True)

    layers, by_layers = f"{options.layers} layers", lambda prompt: shallow
    by_manual = lambda prompt: NGramLM([prompt, *manual], target.vocab_size, 3)  # noqa: E731
    by_prompt = lambda prompt: NGramLM([prompt], target.vocab_size, 4)  # noqa: E731
    different = "specinfer-without-replacement"
    print(f"\nSmolLM2-135M-Instruct, {options.threads} threads, {options.tokens} tokens a text.\n")
    print(f"Answers to questions, sampled at temperature 1; the map of {layers} was fitted in {fitted:.0f} s.\n")
    table(
        [read(question) for question in QUESTIONS[: options.prompts]],
        {
            "transformers": theirs(True),
            f"transformers, assisted by {layers}, 4 tokens": theirs(True, assistant_model=exit),
            "one token a call": ours(True),
            f"block, {layers}, 4 tokens": ours(True, by_layers, "block", delayed(1, 0, 4)),
            f"spectr, {layers}, 4 paths of 4": ours(True, by_layers, "spectr", delayed(4, 0, 4)),
            f"{different}, {layers}, 4, 2, 1": ours(True, by_layers, different, (4, 2, 1)),
            f"{different}, 3-gram of prompt and manual, 6, 2": ours(True, by_manual, different, (6, 2)),
        },
    )
    print("\nCopies of a passage, greedy.\n")
    guesses = {"draft_processing": Processing()}
    table(
        [read(f"Repeat this text word for word: {passage}") for passage in PASSAGES[: options.prompts]],
        {
            "transformers": theirs(False),
            "transformers, prompt lookup, 6 tokens": theirs(False, prompt_lookup_num_tokens=6),
            "one token a call": ours(False),
            "block, 4-gram of the prompt, 6 tokens": ours(False, by_prompt, "block", delayed(1, 0, 6)),
            f"{different}, 4-gram of the prompt, 2, 1, 1, 1, 1, 1": ours(
                False, by_prompt, different, (2, 1, 1, 1, 1, 1), **guesses
            ),
        },
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vocabulary", type=int, default=150_000)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--fit", type=int, default=12, help="texts of up to 512 tokens to fit the early exit on")
    parser.add_argument("--text-only", action="store_true", help="leave the parts without a model out")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    if not options.text_only:
        without_a_model(options)
    end_to_end(options)


def without_a_model(options):
    """Bounds, rules and verifications on random laws."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    V, rounds = options.vocabulary, options.rounds

    print(f"V = {V}, one thread, float64, least of {rounds} rounds\n")
    print("| what | rows | seconds | in softmaxes | plain PyTorch | plain over ours |\n|---|---|---|---|---|---|")

    def line(label, p, function, rival=None):
        if len(p) not in units:
            units[len(p)] = least(lambda: p.softmax(-1), 10)[1]
        _, seconds = least(function, rounds)
        cells = [label, str(len(p)), f"{seconds:.4f}", f"{seconds / units[len(p)]:.2f}"]
        other = least(rival, rounds)[1] if rival else None
        cells += [f"{other:.4f}", f"{other / seconds:.1f}"] if other else ["", ""]
        print("| " + " | ".join(cells) + " |", flush=True)

    units = {}
    p, q = laws(64, V, generator)
    sort = lambda: plain.best_rate(p, q, 4)  # noqa: E731
    line("best rate, with replacement, k = 4", p, lambda: otm_acceptance(p, q, 4), sort)
    line("best rate, without replacement, k = 2", p, lambda: otm_acceptance(p, q, 2, "without_replacement"))
    line("best rate, greedy, k = 4", p, lambda: otm_acceptance(p, q, 4, "greedy"))
    line("best rate, without replacement, k = 4", p[:1], lambda: otm_acceptance(p[0], q[0], 4, "without_replacement"))
    line("rate of K-SEQ, k = 4", p, lambda: KSeqSelector().acceptance_rate(p, q, 4))
    line("rate of SpecInfer, k = 4", p, lambda: SpecInferSelector().acceptance_rate(p, q, 4))
    for n_prompts, branching, shape in [
        (1, delayed(4, 0, 16), "4 paths of 16"),
        (1, (4, 4, 3), "4, 4, 3 drafts"),
        (8, delayed(4, 0, 8), "8 times 4 paths of 8"),
    ]:
        tree = scored(branching, n_prompts, V, generator)
        for method in METHODS:
            verification = find_verification(method)
            rival = None if method == "tournament" else lambda m=method, t=tree: plain.verify(t, m, generator)
            line(f"{shape}, {method}", tree.p, lambda v=verification, t=tree: v.verify(t, generator), rival)

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

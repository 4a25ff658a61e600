"""
Fewer calls of a language model
===============================

A small Llama learns to write like the help texts of Python, letter by letter. Then a draft model proposes trees of
letters, and the Llama says in one call what it would have written: the text has its law, and takes fewer calls. How
that is done: :doc:`Decoding </systems/decoding>`. Here the models are those of `transformers`.
"""

import matplotlib.pyplot as plt
import torch
import transformers

from brenier import data
from brenier.systems.decoding.huggingface import HuggingFaceLM, early_exit, generate
from brenier.systems.decoding.models import NGramLM
from brenier.systems.decoding.tree import delayed

text = " ".join(" ".join(data.python_topics().values()).lower().split())
letters = sorted(set(text))
tokens = torch.tensor([letters.index(c) for c in text])
held_out, tokens = tokens[:5000], tokens[5000:]

# %%
# The target: four layers, trained for a few seconds.

torch.manual_seed(0)
config = transformers.LlamaConfig(
    vocab_size=len(letters),
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    max_position_embeddings=256,
    tie_word_embeddings=True,
    bos_token_id=None,
    eos_token_id=None,
)
model = transformers.LlamaForCausalLM(config)
optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01)
steps = 250
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
for _ in range(steps):
    begins = torch.randint(len(tokens) - 64, (16, 1))
    batch = tokens[begins + torch.arange(64)]
    loss = model(batch, labels=batch).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
model.eval()
print(f"{sum(p.numel() for p in model.parameters()):,} weights, {float(loss.detach()):.2f} nats a letter")

# %%
# Two drafts: a 3-gram model, and the first layer of the Llama itself with its own head, after a linear map that least
# squares fit to some text. `generate` takes the names that `model.generate` takes.

exit = early_exit(model, 1, list(tokens[:20_000].reshape(-1, 200)))
drafts = {"3-gram": NGramLM([tokens], len(letters), 3), "first layer": exit}
prompts = torch.stack([held_out[i : i + 24] for i in range(0, 4000, 400)])
target = HuggingFaceLM(model)

options = {"attention_mask": torch.ones_like(prompts), "do_sample": False, "max_new_tokens": 40, "pad_token_id": 0}
plain = model.generate(prompts, **options)
ours = generate(target, prompts, assistant_model=exit, **options)
print("greedy texts are the same:", bool((ours == plain).all()))
assert (ours == plain).all()
print("".join(letters[t] for t in ours[3]))

# %%
# Tokens a call, by method, when texts are sampled. Methods with one path are on the left.

methods = {
    "one token": (None, ()),
    "block": ("block", delayed(1, 0, 4)),
    "naive": ("naive", delayed(4, 0, 4)),
    "K-SEQ": ("spectr", delayed(4, 0, 4)),
    "Traversal": ("traversal", delayed(4, 0, 4)),
    "all different": ("specinfer-without-replacement", (4, 2, 1, 1)),
}
fig, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
for k, (name, draft) in enumerate(drafts.items()):
    heights = []
    for method, branching in methods.values():
        out = generate(
            target,
            prompts,
            assistant_model=None if method is None else draft,
            method=method or "spectr",
            branching=branching,
            do_sample=True,
            max_new_tokens=60,
            seed=0,
            return_dict_in_generate=True,
        )
        heights.append(out.result.block_efficiency)
    ax.bar([x + 0.4 * k - 0.2 for x in range(len(methods))], heights, 0.36, label=f"draft: {name}")
    print(name, [round(h, 2) for h in heights])
ax.axhline(1, color="0.7", lw=1)
ax.set(xticks=range(len(methods)), xticklabels=methods, ylabel="tokens a call", title="60 letters, 10 texts")
ax.legend(frameon=False)

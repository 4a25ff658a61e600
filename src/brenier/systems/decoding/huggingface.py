"""Causal language models of Hugging Face `transformers`, with keys and values that are kept from call to call.

`HuggingFaceLM` scores a draft tree with one forward pass over the tokens that its cache does not hold: each token sees
its own way through the tree only, by an attention mask of four dimensions, and has the position of its depth. Between
calls the cache is cropped to what it has seen of each text, which is the accepted path. `generate` is the loop under
the names that users of `transformers` know.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..._inputs import is_count
from ...errors import InvalidInput, need, refuse
from .generation import Branching, Decoder, GenerationResult
from .models import LanguageModel, TorchLM
from .selectors import TokenSelector
from .tree import DraftTree, branching_matrix, draft_tree
from .verification import Verification

__all__ = ["GenerateOutput", "HuggingFaceLM", "early_exit", "generate", "same_tokens"]

_CHUNK = 1024  # tokens of a prompt that one pass takes; its attention mask has a row for each


@dataclass
class _Row:
    """What the cache holds of one text, and of the tree below it.

    Attributes:
        slots: of the first tokens of the text, one after another; the others are not in the cache.
        children: the slot of a token, from the slot before (-1 at the beginning of a text) and the token.
    """

    slots: list[int] = field(default_factory=list)
    children: dict[tuple[int, int], int] = field(default_factory=dict)

    def path(self, text: Sequence[int]) -> list[int]:
        """The slots of the longest beginning of a text that is in the cache, wherever it branches."""
        slots: list[int] = []
        for token in text:
            slot = self.children.get((slots[-1] if slots else -1, token))
            if slot is None:
                break
            slots.append(slot)
        return slots

    def append(self, token: int, slot: int) -> None:
        """One more token of the text."""
        self.children[self.slots[-1] if self.slots else -1, token] = slot
        self.slots.append(slot)


@dataclass
class _New:
    """What the model is given of one text and its tree: positions of the text, then nodes, those asked for last."""

    text: range = range(0)
    inner: list[int] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)

    @property
    def nodes(self) -> list[int]:
        return self.inner + self.asked

    def __len__(self) -> int:
        return len(self.text) + len(self.inner) + len(self.asked)


class HuggingFaceLM:
    """A causal language model of `transformers`, or anything with its interface, with a cache.

    A call feeds only tokens that the cache does not hold, all in one pass (more than 1024 new tokens of a prompt in
    several): a step of decoding costs one call for all prompts, whatever their lengths. What the cache holds is
    recognised by its tokens, so that texts may come in any order, end, branch, or begin anew.

    When it is made, the logits of a small tree are compared with plain passes: a model whose attention does not follow
    masks, positions and cache (ALiBi, state spaces) is refused and not used wrongly; `TorchLM` takes such models.

    Args:
        model: the model, in evaluation mode, with "eager" or "sdpa" attention; it may be on any device, in any dtype.
        vocab_size: V; the model's own when None. Logits beyond V are cut, missing ones are -inf. Give a draft model the
            size of its target: the target's law is untouched, and tokens that only the target has are never drafted.

    Raises:
        InvalidInput: a model of another kind, or one that fails the comparison; when called, an empty context, or one
            that is with its drafts longer than the model can see.
        MissingExtra: without `transformers`.

    Complexity: a pass over n new tokens after m cached ones, with a mask of n (n + m) numbers for each text; the cache
    is copied once a call. Call `reset` when weights have changed, or to free its memory.

    Example:
        >>> import torch, transformers
        >>> _ = torch.manual_seed(0)
        >>> config = transformers.GPT2Config(vocab_size=11, n_positions=64, n_embd=8, n_layer=2, n_head=2)
        >>> model = HuggingFaceLM(transformers.GPT2LMHeadModel(config).eval())
        >>> model.logits([torch.tensor([1, 2, 3]), torch.tensor([4])]).shape
        torch.Size([2, 11])
    """

    def __init__(self, model: Any, vocab_size: int | None = None) -> None:
        self._new_cache = need("transformers", "language", "HuggingFaceLM").DynamicCache
        if vocab_size is not None and not is_count(vocab_size):
            refuse("vocab_size", "a positive integer or None", repr(vocab_size))
        self.model = model
        config = _text_config(model)
        self._width = int(config.vocab_size)
        self.vocab_size = self._width if vocab_size is None else int(vocab_size)
        self._embedded = len(model.get_input_embeddings().weight)
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._limit = _longest(config)
        self.reset()
        self._compare()

    def reset(self) -> None:
        """Forget what was seen, and free the memory of the cache."""
        self._cache: Any = self._new_cache()
        self._length = 0  # slots of the cache, the same for all rows
        self._texts: list[list[int]] = []
        self._rows: list[_Row] = []

    def logits(
        self,
        contexts: Sequence[Tensor],  # n tensors (length,)
    ) -> Tensor:  # (n, V)
        """Logits of the token after each context."""
        device = contexts[0].device if contexts else None
        none = torch.zeros(len(contexts), 0, dtype=torch.long, device=device)
        roots = draft_tree(_uniform(1), none, 1)
        return self.tree_logits(contexts, roots, roots.prompt)

    def tree_logits(
        self,
        contexts: Sequence[Tensor],  # B tensors (length,), one for each prompt
        tree: DraftTree,
        nodes: Tensor,  # (n,)
    ) -> Tensor:  # (n, V)
        """Logits of the token after each of these nodes."""
        missing = self.vocab_size - self._width  # where it is negative, logits are cut
        return pad(self._score(contexts, tree, nodes), (0, missing), value=-math.inf).to(nodes.device)

    # -- how it is done --------------------------------------------------------------------------------------

    def _score(self, contexts: Sequence[Tensor], tree: DraftTree, nodes: Tensor) -> Tensor:
        """Logits over the model's own vocabulary."""
        texts = [context.tolist() for context in contexts]
        if not texts or min(map(len, texts)) == 0:
            refuse("contexts", "at least one token each", "an empty one", "Begin with the token that starts a text.")
        wanted = nodes.tolist()
        if not wanted:
            return torch.zeros(0, self._width)
        asked = set(wanted)
        try:
            if texts != self._texts or any(c < len(texts) for c in asked):
                self._crop(texts)  # what is below a root that is asked for belongs to another tree
            new, places = self._sort(texts, tree, nodes, asked)
            while max(len(row.text) for row in new) > _CHUNK:
                self._feed(texts, [_New(row.text[:_CHUNK]) for row in new], places, tree, 1)
                for row in new:
                    row.text = row.text[_CHUNK:]
            kept = max(len(row.asked) for row in new)
            logits = self._feed(texts, new, places, tree, kept)
        except BaseException:
            self.reset()  # some layers may have seen more than others
            raise
        at = {c: (b, j - len(row.asked)) for b, row in enumerate(new) for j, c in enumerate(row.asked)}
        return logits[[at[c][0] for c in wanted], [at[c][1] for c in wanted]]

    def _crop(self, texts: list[list[int]]) -> None:
        """Keep of the cache the longest beginning of each text that is in it, in the first slots of its row."""
        sources = _sources(self._texts, texts)
        paths = [[] if r is None else self._rows[r].path(text) for r, text in zip(sources, texts)]
        length = max(map(len, paths))
        if length:
            rows = torch.tensor([r or 0 for r in sources])
            slots = torch.tensor([path + [0] * (length - len(path)) for path in paths])
            for layer in self._cache.layers:
                device = layer.keys.device
                at = slots.to(device)[:, None, :, None]
                for name in ("keys", "values"):
                    held = getattr(layer, name)[rows.to(device)]
                    setattr(layer, name, held.gather(2, at.expand(-1, held.shape[1], -1, held.shape[3])))
        else:
            self._cache = self._new_cache()
        self._length = length
        self._texts = texts
        self._rows = [_Row() for _ in texts]
        for row, text, path in zip(self._rows, texts, paths):
            for slot, token in enumerate(text[: len(path)]):
                row.append(token, slot)

    def _sort(
        self, texts: list[list[int]], tree: DraftTree, nodes: Tensor, asked: set[int]
    ) -> tuple[list[_New], list[dict[int, int]]]:
        """What has to be computed for each text, and the slots of nodes that do not."""
        new: list[_New] = [_New() for _ in texts]
        places: list[dict[int, int]] = [{} for _ in texts]
        parent, tokens, prompt = tree.parent.tolist(), tree.tokens.tolist(), tree.prompt.tolist()
        # with what is on the way to them, parents first
        for c in tree.ancestors[nodes].any(0).nonzero().squeeze(1).tolist():
            b = prompt[c]
            row, text = self._rows[b], texts[b]
            slot: int | None = None
            if c < len(texts):
                end = len(text) - (c in asked)
                del row.slots[end:]  # logits are not kept, so that what is asked for is computed again
                new[b].text = range(len(row.slots), end)
                if len(row.slots) == len(text):
                    slot = row.slots[-1]
            elif parent[c] in places[b]:
                slot = row.children.get((places[b][parent[c]], tokens[c]))
            if c in asked:
                new[b].asked.append(c)
            elif slot is not None:
                places[b][c] = slot
            elif c >= len(texts):
                new[b].inner.append(c)
        return new, places

    def _feed(
        self, texts: list[list[int]], new: list[_New], places: list[dict[int, int]], tree: DraftTree, kept: int
    ) -> Tensor:  # (B, kept, V)
        """One forward pass over new tokens, aligned at their ends; logits at the last of them."""
        past, width = self._length, max(map(len, new))
        ids = torch.zeros(len(texts), width, dtype=torch.long)
        positions = torch.zeros_like(ids)
        # padding sees itself, as a softmax over nothing is no law
        visible = torch.zeros(len(texts), width, past + width, dtype=torch.bool)
        visible[:, torch.arange(width), past + torch.arange(width)] = True
        parent, tokens, depth = tree.parent.tolist(), tree.tokens.tolist(), tree.depth.tolist()
        ancestors = tree.ancestors.cpu()
        for b, (text, row, fresh, place) in enumerate(zip(texts, self._rows, new, places)):
            begin, nodes = width - len(fresh), fresh.nodes
            first = begin + len(fresh.text)  # column of the first node
            where = [*fresh.text, *(len(text) - 1 + depth[c] for c in nodes)]
            ids[b, begin:] = torch.tensor([text[i] if i < len(text) else -1 for i in where], dtype=torch.long)
            positions[b, begin:] = torch.tensor(where, dtype=torch.long)
            for i in fresh.text:
                row.append(text[i], past + begin + i - fresh.text.start)
            place.update((c, past + first + j) for j, c in enumerate(nodes))
            if b in nodes:
                row.append(text[-1], place[b])
            elif len(row.slots) == len(text):
                place[b] = row.slots[-1]
            for j, c in enumerate(nodes):
                if c != b:
                    ids[b, first + j] = tokens[c]
                    row.children[place[parent[c]], tokens[c]] = place[c]
            columns = torch.arange(begin, width).unsqueeze(1)
            slots = torch.tensor(row.slots, dtype=torch.long)
            visible[b][columns, slots] = torch.arange(len(slots)) <= positions[b, begin:].unsqueeze(1)
            below = [c for c in place if c != b]
            if nodes and below:
                slots = torch.tensor([place[c] for c in below])
                visible[b][columns[len(fresh.text) :], slots] = ancestors[nodes][:, below]
        if self._limit is not None and int(positions.max()) >= self._limit:
            got = f"{int(positions.max()) + 1}"
            refuse("contexts", f"at most {self._limit} tokens with their drafts, which the model can see", got)
        self._length += width
        return self._forward(torch.where(ids < self._embedded, ids, 0), positions, visible, kept)

    def _forward(self, ids: Tensor, positions: Tensor, visible: Tensor, kept: int) -> Tensor:
        parameter = next(self.model.parameters())
        mask = torch.zeros(visible.shape, dtype=parameter.dtype)
        mask = mask.masked_fill(~visible, torch.finfo(parameter.dtype).min).unsqueeze(1)
        with torch.no_grad():
            logits: Tensor = self.model(
                input_ids=ids.to(parameter.device),
                position_ids=positions.to(parameter.device),
                attention_mask=mask.to(parameter.device),
                past_key_values=self._cache,
                use_cache=True,
                **({"logits_to_keep": kept} if self._keeps_logits else {}),
            ).logits
        if logits.shape[-1] != self._width:
            refuse("model", f"logits over config.vocab_size = {self._width} tokens", f"{logits.shape[-1]}")
        return logits[:, -kept:]

    def _compare(self) -> None:
        """Refuse a model whose logits at a tree are not those of plain passes."""
        generator = torch.Generator().manual_seed(0)
        size = min(self._width, self._embedded)
        texts = [torch.randint(size, (n,), generator=generator) for n in (4, 2)]
        tree = draft_tree(_uniform(size), branching_matrix([(2, 1), (2,)]), size, generator=generator)
        every = torch.arange(len(tree))
        expected = (
            "a causal language model whose attention takes masks of four dimensions, position ids and a cache of keys "
            "and values"
        )
        cure = "TorchLM(model, vocab_size) takes any causal model."
        try:
            plain = TorchLM(self.model, self._width).tree_logits(texts, tree, every)
            self._score([text[:-1] for text in texts], tree, torch.arange(2))
            off = float((self._score(texts, tree, every).to(plain.device) - plain).abs().max() / plain.std())
        except InvalidInput:
            raise
        except Exception as error:
            said = next(iter(str(error).splitlines()), "")
            refuse("model", expected, f"{type(error).__name__}: {said}", cure)
        self.reset()
        # rounding stays below, another attention is above
        if not off <= max(3e-3, 50 * torch.finfo(plain.dtype).eps):
            refuse("model", expected, f"logits of a tree that are off by {off:.2g} standard deviations", cure)


def _text_config(model: Any) -> Any:
    """The configuration of the language model, after a look at what is known to be wrong."""
    expected = "a causal language model of transformers"
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        refuse("model", expected, type(model).__name__)
    config: Any = model.config
    if getattr(config, "is_encoder_decoder", False):
        refuse("model", expected, "an encoder and a decoder")
    if model.training:
        refuse("model", "a model in evaluation mode", "one in training mode", "Call .eval() first.")
    attention = getattr(config, "_attn_implementation", None)
    if attention not in (None, "eager", "sdpa"):
        cure = "Load it with attn_implementation='sdpa'."
        refuse("model", "attention that takes a mask, 'eager' or 'sdpa'", repr(attention), cure)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _longest(config: Any) -> int | None:
    """Tokens that the model can see at once; windows are not in the masks that it is given."""
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    others = ("max_position_embeddings", "attention_chunk_size", "window_size")
    sizes = (window, *(getattr(config, name, None) for name in others))
    return min((size for size in sizes if isinstance(size, int) and size > 0), default=None)


def _sources(before: list[list[int]], texts: list[list[int]]) -> list[int | None]:
    """For each text, which of those before it goes on; the one that begins most like it where it goes on none."""
    sources: list[int | None] = []
    at = 0  # texts usually come in the same order, less those that have ended
    for text in texts:
        going_on = (r for r in range(at, len(before)) if text[: len(before[r])] == before[r])
        r = next(going_on, None)
        if r is None:
            r = max(range(len(before)), key=lambda r: _shared(before[r], text), default=None)
        else:
            at = r + 1
        sources.append(r)
    return sources


def _shared(x: list[int], y: list[int]) -> int:
    """How many tokens two texts share at their beginnings."""
    return next((i for i, (s, t) in enumerate(zip(x, y)) if s != t), min(len(x), len(y)))


def _uniform(vocab_size: int) -> Callable[[Any, Tensor], Tensor]:
    return lambda tree, nodes: torch.full((len(nodes), vocab_size), 1 / vocab_size, dtype=torch.float64)


def early_exit(
    model: Any,
    n_layers: int,
    texts: Sequence[Tensor] = (),  # (length,) each
    *,
    ridge: float = 1e-2,
) -> Any:
    r"""The first layers of a model with its own last norm and head, as a draft model without weights of its own.

    With texts, a linear map is put before the norm that takes states h at the exit to states y of the last layer:

        A = argmin sum over tokens |A h/|h| - y/|y||^2 + ridge n/d |A|_F^2,

    as the norm makes lengths irrelevant. Without, states go to the norm as they are. Weights are shared, not copied:
    train neither through the other. A rough exit costs acceptance, never the law.

    Args:
        model: a causal language model of `transformers` whose layers are one list.
        n_layers: layers to keep, fewer than it has.
        texts: tokens to fit the map on, some thousands in all, none longer than the model can see.
        ridge: beside the mean square of a state's entry, which is 1/d.

    Raises:
        InvalidInput: no such list, or a number of layers out of its range.

    Complexity: with texts, one pass of the model over them, and O(tokens d^2 + d^3).

    Reference: Belrose et al. (2023), Eliciting latent predictions from transformers with the tuned lens; Zhang et al.
    (2024), Draft & verify: lossless large language model acceleration via self-speculative decoding.

    Example:
        >>> import transformers
        >>> config = transformers.GPT2Config(vocab_size=11, n_positions=64, n_embd=8, n_layer=3, n_head=2)
        >>> model = transformers.GPT2LMHeadModel(config).eval()
        >>> draft = early_exit(model, 1)
        >>> len(draft.transformer.h), len(model.transformer.h), draft.lm_head is model.lm_head
        (1, 3, True)
    """
    config = copy.deepcopy(_text_config(model))
    depth = config.num_hidden_layers
    if not is_count(n_layers) or not n_layers < depth:
        refuse("n_layers", f"an integer 1..{depth - 1}", repr(n_layers))
    base = getattr(model, model.base_model_prefix, None)
    parts: dict[str, Any] = dict(base.named_children()) if isinstance(base, nn.Module) and base is not model else {}
    lists = [name for name, part in parts.items() if isinstance(part, nn.ModuleList) and len(part) == depth]
    norms = [name for name in ("norm", "ln_f", "final_layernorm", "final_layer_norm") if name in parts]
    if len(lists) != 1 or len(norms) != 1:
        got = f"{len(lists)} and {len(norms)}"
        refuse("model", f"a list of {depth} layers, and a norm after them", got)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:n_layers]
    config.num_hidden_layers = n_layers
    shorter, outer = _apart(base), _apart(model)
    setattr(shorter, lists[0], parts[lists[0]][:n_layers])
    setattr(outer, model.base_model_prefix, shorter)
    shorter.config = outer.config = config
    # assisted generation of transformers writes into it
    outer.generation_config = copy.deepcopy(getattr(model, "generation_config", None))
    if texts:
        norm = parts[norms[0]]
        x, y = (torch.cat([_directions(m, norm, text) for text in texts]) for m in (outer, model))
        d = x.shape[1]
        gram = x.T @ x + ridge * len(x) / d * torch.eye(d, dtype=x.dtype, device=x.device)
        lens = nn.Linear(d, d, bias=False)
        lens.weight = nn.Parameter(torch.linalg.solve(gram, x.T @ y).T.to(model.dtype), requires_grad=False)
        setattr(shorter, norms[0], nn.Sequential(lens, norm).eval())
    return outer


def _directions(model: Any, norm: nn.Module, text: Tensor) -> Tensor:  # (length, d), float64
    """The states that the last norm is given for each token of a text, made of length 1."""
    seen: list[Tensor] = []
    hook = norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        with torch.no_grad():
            model(text.unsqueeze(0).to(next(model.parameters()).device))
    finally:
        hook.remove()
    return nn.functional.normalize(seen[0][0].double(), dim=-1)


def _apart(module: Any) -> Any:
    """A module with the same parts, whose parts can be replaced without touching the first one."""
    twin = copy.copy(module)
    twin.__dict__.update({name: copy.copy(value) for name, value in vars(module).items() if isinstance(value, dict)})
    return twin


def same_tokens(tokenizer: Any, other: Any) -> bool:
    """Whether two tokenizers of `transformers` mean the same by every number that both know."""
    mine, its = ({number: token for token, number in t.get_vocab().items()} for t in (tokenizer, other))
    shared = mine.keys() & its.keys()
    return bool(shared) and all(mine[number] == its[number] for number in shared)


# -- under the names of transformers -------------------------------------------------------------------------


class GenerateOutput(NamedTuple):
    """What `generate` returns with `return_dict_in_generate`.

    Attributes:
        sequences: (B, longest) prompts with what was written, as `generate` returns them.
        result: the new tokens, the blocks, and what they cost.
    """

    sequences: Tensor
    result: GenerationResult


# settings of a generation_config that change what is written, and that verification does not know
_NEUTRAL = {
    **dict.fromkeys(("num_beams", "num_return_sequences", "repetition_penalty", "encoder_repetition_penalty"), 1),
    **dict.fromkeys(("typical_p", "guidance_scale"), 1),
    **dict.fromkeys(("no_repeat_ngram_size", "min_p", "epsilon_cutoff", "eta_cutoff", "min_length"), 0),
    **dict.fromkeys(("min_new_tokens", "penalty_alpha", "top_h", "bad_words_ids", "suppress_tokens"), 0),
    **dict.fromkeys(("begin_suppress_tokens", "sequence_bias", "forced_bos_token_id", "forced_eos_token_id"), 0),
    "exponential_decay_length_penalty": 0,
}


def generate(
    model: Any,
    inputs: Tensor | None = None,  # (B, T)
    *,
    input_ids: Tensor | None = None,  # (B, T)
    attention_mask: Tensor | None = None,  # (B, T)
    assistant_model: Any = None,
    method: str | Verification | TokenSelector = "spectr",
    branching: Branching | None = None,
    max_new_tokens: int = 128,
    do_sample: bool | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    stop_strings: str | Sequence[str] | None = None,
    tokenizer: Any = None,
    assistant_tokenizer: Any = None,
    streamer: Any = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    return_dict_in_generate: bool = False,
) -> Tensor | GenerateOutput:
    """Continue prompts as `model.generate` does, in fewer calls of the model.

    The text has the law of the model; with `do_sample=False` it is the text that `model.generate` writes. What is not
    given is taken from `model.generation_config`, as there; a top-k of 50 is not assumed. Settings of that
    configuration that verification does not know, such as penalties and beams, are refused.

    Args:
        model: a model of `transformers`, or a `HuggingFaceLM`, whose cache is then kept for the next call.
        inputs, input_ids: prompts, as `tokenizer(..., return_tensors="pt")` gives them; one of the two.
        attention_mask: 0 where a prompt is padded, on the left as a rule; when None, padding is what equals
            `pad_token_id` if that is no `eos_token_id`.
        assistant_model: the draft: a model of `transformers`, or any `LanguageModel`. None samples token by token.
        method, branching: as for `Decoder`.
        max_new_tokens: tokens after which a prompt is finished.
        do_sample: False (the default) takes the most probable token each time, like temperature 0.
        temperature, top_k, top_p: see `Processing`; a top_k of 0 keeps all.
        eos_token_id: a token that finishes a prompt, or several; [] for none.
        pad_token_id: what rows that end early are filled with; an eos_token_id when there is none.
        stop_strings: a text that finishes a prompt, or several. Needs `tokenizer`.
        tokenizer: from tokens to text.
        assistant_tokenizer: the draft's. With both, models whose vocabularies are padded differently go together.
        streamer: an object with `put` and `end` as in `transformers` (one prompt), or a function of each `BlockEvent`.
        seed, generator: of all draws, one of the two at most; the global generator when there is none.
        return_dict_in_generate: return a `GenerateOutput`.

    Returns:
        (B, longest) prompts and what was written after them, filled with `pad_token_id` at the end.

    Raises:
        InvalidInput: no prompts or two, a mask of another shape, models of different vocabularies, settings that are
            not supported, or options out of their range.

    Example:
        >>> import torch, transformers
        >>> _ = torch.manual_seed(0)
        >>> config = transformers.GPT2Config(vocab_size=11, n_positions=64, n_embd=8, n_layer=2, n_head=2)
        >>> config.eos_token_id = config.bos_token_id = None
        >>> model = transformers.GPT2LMHeadModel(config).eval()
        >>> prompt = torch.tensor([[1, 2, 3]])
        >>> draft = early_exit(model, 1)
        >>> generate(model, prompt, assistant_model=draft, max_new_tokens=8, do_sample=True, seed=0).shape
        torch.Size([1, 11])
    """
    if (inputs is None) == (input_ids is None):
        refuse("inputs, input_ids", "one of the two", "none" if inputs is None else "both")
    prompts = inputs if input_ids is None else input_ids
    if not isinstance(prompts, Tensor) or prompts.dim() != 2:
        got = f"shape {tuple(prompts.shape)}" if isinstance(prompts, Tensor) else type(prompts).__name__
        refuse("input_ids", "a tensor (prompts, tokens)", got, "tokenizer(..., return_tensors='pt') gives one.")
    if seed is not None and generator is not None:
        refuse("seed, generator", "one of the two at most", "both")
    target = model if isinstance(model, HuggingFaceLM) else HuggingFaceLM(model)
    settings: Any = getattr(target.model, "generation_config", None)
    for name, neutral in _NEUTRAL.items():
        value = getattr(settings, name, None)
        if value is not None and value != neutral and value != []:
            cure = f"Set model.generation_config.{name} = None if you can do without."
            refuse(f"model.generation_config.{name}", "a setting that leaves the law of the model", repr(value), cure)

    def chosen(given: Any, name: str, otherwise: Any) -> Any:
        value = getattr(settings, name, None) if given is None else given
        return otherwise if value is None else value

    eos = chosen(eos_token_id, "eos_token_id", [])
    eos = [eos] if isinstance(eos, int) else list(eos)
    filling = chosen(pad_token_id, "pad_token_id", eos[0] if eos else 0)
    if attention_mask is None:
        padded = chosen(pad_token_id, "pad_token_id", None)
        attention_mask = torch.ones_like(prompts) if padded is None or padded in eos else prompts != padded
    if attention_mask.shape != prompts.shape:
        refuse("attention_mask", f"shape {tuple(prompts.shape)}, as input_ids", f"{tuple(attention_mask.shape)}")
    sampled = bool(chosen(do_sample, "do_sample", False))
    decoder = Decoder(
        target,
        _draft(target, assistant_model, tokenizer, assistant_tokenizer),
        method,
        branching,
        temperature=chosen(temperature, "temperature", 1.0) if sampled else 0.0,
        top_k=(chosen(top_k, "top_k", None) or None) if sampled else None,
        top_p=chosen(top_p, "top_p", 1.0) if sampled else 1.0,
        eos_token_id=eos,
        stop_strings=stop_strings,
        decode=None if tokenizer is None else tokenizer.decode,
    )
    if seed is not None:
        generator = torch.Generator(prompts.device).manual_seed(seed)
    listener = streamer
    if hasattr(streamer, "put"):
        if len(prompts) > 1:
            refuse("streamer", "a function of each block, for several prompts", f"one with put, for {len(prompts)}")
        streamer.put(prompts.cpu())
        listener = lambda block: streamer.put(block.tokens.cpu())  # noqa: E731
    texts = [row[shown.bool()] for row, shown in zip(prompts, attention_mask)]
    result = decoder.generate(texts, max_new_tokens, generator=generator, streamer=listener)
    if hasattr(streamer, "end"):
        streamer.end()
    new = nn.utils.rnn.pad_sequence(result.tokens, batch_first=True, padding_value=filling)
    sequences = torch.cat([prompts, new.to(prompts.dtype)], 1)
    return GenerateOutput(sequences, result) if return_dict_in_generate else sequences


def _draft(target: HuggingFaceLM, assistant: Any, tokenizer: Any, assistant_tokenizer: Any) -> LanguageModel | None:
    """The draft model over the target's vocabulary."""
    if tokenizer is not None and assistant_tokenizer is not None and not same_tokens(tokenizer, assistant_tokenizer):
        refuse("assistant_tokenizer", "the same tokens as tokenizer", "one that numbers them otherwise")
    if not isinstance(assistant, nn.Module) or not hasattr(assistant, "config"):
        draft: LanguageModel | None = assistant
        return draft
    size = int(_text_config(assistant).vocab_size)
    if size != target.vocab_size and (tokenizer is None or assistant_tokenizer is None):
        cure = "If only their padding differs, give tokenizer and assistant_tokenizer, which are then compared."
        refuse("assistant_model", f"a model over the model's {target.vocab_size} tokens", f"one over {size}", cure)
    return HuggingFaceLM(assistant, target.vocab_size)

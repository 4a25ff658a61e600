r"""Verification of draft trees: which tokens of a tree are kept, and the one that is written after them.

Given a tree with the draft's and the target's laws, a verification ends a block at a node c, keeps the path to it, and
adds one token y: the *outcome* (c, y). It is lossless when, over trees and outcomes, what is written has the target's
law. All here are, for trees whose drafts were drawn as their scheme says. The block efficiency is the mean length of a
block, depth of c plus one: the number of tokens for one call of the target.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...errors import refuse
from .laws import Scheme, draw, member, without
from .selectors import (
    GreedySelector,
    KSeqSelector,
    NaiveSelector,
    NSSSelector,
    SpecInferSelector,
    TokenSelector,
    TournamentSelector,
)
from .tree import DraftTree

__all__ = [
    "Block",
    "Outcome",
    "TopDown",
    "Traversal",
    "Verification",
    "block_efficiency_bound",
    "find_verification",
]

_NOTHING = 1e-14
_CACHED = 2**17  # entries of a law that stay in the cache of a core beside others


class Outcome(NamedTuple):
    """Where the block of each prompt ends, and the token that is written after it."""

    node: Tensor  # (B,)
    token: Tensor  # (B,)


class Verification(ABC):
    """A way to verify trees."""

    @property
    @abstractmethod
    def scheme(self) -> Scheme:
        """How the drafts of the trees must be drawn, see `sample_drafts`."""

    @abstractmethod
    def outcomes(self, tree: DraftTree) -> Tensor:  # (N, V)
        """The law of the outcome given the tree: at [c, y] the probability that the block ends at c and adds y."""

    def verify(self, tree: DraftTree, generator: torch.Generator | None = None) -> Outcome:
        """Draw the outcome for each prompt."""
        prompts = torch.arange(tree.n_prompts, device=tree.tokens.device)
        if prompts.device.type == "cpu":  # so many at once that their rows stay in the cache
            blocks = prompts.split(max(1, _CACHED // tree.q.shape[1]))
        else:
            blocks = (prompts,)
        node, token = zip(*(self._verify(tree, block, generator) for block in blocks))
        return Outcome(torch.cat(node), torch.cat(token))

    @abstractmethod
    def _verify(self, tree: DraftTree, roots: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """The node and the token of these prompts."""

    def block_efficiency(self, tree: DraftTree) -> Tensor:  # (B,)
        """The expected length of each block given the tree, exactly; its mean over trees is the block efficiency."""
        return tree.per_prompt(self.outcomes(tree).sum(-1) * (tree.depth + 1))

    def efficiency_by_depth(self, tree: DraftTree) -> Tensor:  # (B, L + 1)
        """The block efficiency of the first 0, 1, ..., L levels of the tree; the last of them is that of the tree.

        Raises:
            InvalidInput: as for `DraftTree.part`.
        """
        parts = (tree.part(tree.branching[:, :n]) for n in range(tree.branching.shape[1] + 1))
        return torch.stack([self.block_efficiency(part) for part in parts], 1)

    def _scored(self, tree: DraftTree) -> Tensor:
        """The target's laws of a tree that this verification can read."""
        if tree.p is None:
            refuse("tree", "a tree that the target has scored", "one without p", "Use tree.scored(p).")
        if tree.scheme != self.scheme:
            refuse("tree", f"drafts drawn {self.scheme!r}, as {self} needs", repr(tree.scheme))
        return tree.p

    def _laws(self, tree: DraftTree, nodes: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Target and draft laws of these nodes, the first in place of the second where nothing was drawn."""
        p, leaf = _rows(self._scored(tree), nodes), tree.is_leaf[nodes]
        if not bool(leaf.any()):
            return p, _rows(tree.q, nodes)
        return p, torch.where(leaf.unsqueeze(1), p, _rows(tree.q, nodes))


@dataclass(frozen=True)
class TopDown(Verification):
    """Walk down from the root: select a token at each node, go on while it is one of the drafts.

    Args:
        selector: the rule of selection.

    Complexity: one selection for each token of the block, for all prompts at once.

    Reference: Sun et al. (2023), SpecTr; Miao et al. (2024), SpecInfer.
    """

    selector: TokenSelector = field(default_factory=KSeqSelector)

    @property
    def scheme(self) -> Scheme:
        """That of the selector."""
        return self.selector.scheme

    def outcomes(self, tree: DraftTree) -> Tensor:
        """The law of the outcome given the tree, (N, V)."""
        law, visited = self._walk(tree)
        return torch.where(member(tree.drafts, law.shape[-1]), 0, law) * visited.unsqueeze(1)

    def efficiency_by_depth(self, tree: DraftTree) -> Tensor:
        """The block efficiency of the first 0, 1, ..., L levels of the tree, (B, L + 1), all from one walk."""
        _, visited = self._walk(tree)  # levels below change nothing above
        by_depth = visited.new_zeros(tree.n_prompts, tree.branching.shape[1] + 1)
        return by_depth.index_put((tree.prompt, tree.depth), visited, accumulate=True).cumsum(1)

    def _walk(self, tree: DraftTree) -> tuple[Tensor, Tensor]:  # (N, V), (N,)
        """The law of the token that is selected at each node, and the probability that the walk comes to it."""
        law = self.selector.branching(*self._laws(tree), tree.drafts)
        return law, tree.product_along(tree.along(law))

    def _verify(self, tree: DraftTree, roots: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        node, token = roots.clone(), torch.full_like(roots, -1)
        going = torch.arange(len(roots), device=roots.device)
        while len(going):
            at = node[going]
            selected = self.selector.sample(*self._laws(tree, at), tree.drafts[at], generator)
            token[going] = selected.token
            kept = selected.index >= 0
            going, at = going[kept], at[kept]
            node[going] = tree.children[at, selected.index[kept]]
        return node, token


@dataclass(frozen=True)
class Traversal(Verification):
    r"""Traversal verification: leaves first, so that a whole path can be kept where its beginning alone would fail.

    A node c has a weight w and a law M, at first p. For each draft x of c in turn, its node gets the weight
    min(1, w M(x)/q(x)); if no outcome is found below x, R = (w M - q)_+ with mass S, w becomes S/(S + 1 - w), and M
    becomes R/S. Then the block ends at c with probability w, with a token drawn from M. The root has weight 1.

    Weights depend on the tree alone, not on what is drawn, so that they are found for all nodes of a level at once;
    the block then ends at the first node, children before parents, that its weight accepts.

    Args:
        replacement: whether the drafts of a node are drawn with replacement.

    Reference: Weng et al. (2025), Traversal verification for speculative tree decoding, arXiv 2505.12398; for
    a single path, Sun et al. (2024), Block verification accelerates speculative decoding, arXiv 2403.10444.
    """

    replacement: bool = True

    @property
    def scheme(self) -> Scheme:
        """How the drafts of the trees must be drawn."""
        return "with_replacement" if self.replacement else "without_replacement"

    def weights(self, tree: DraftTree) -> tuple[Tensor, Tensor]:  # (N,), (N, V)
        """The weight of each node after its children, and the law of the token that it would add."""
        _, weight, law = self._weights(tree)
        return weight, law

    def outcomes(self, tree: DraftTree) -> Tensor:
        """The law of the outcome given the tree, (N, V)."""
        weight, law = self.weights(tree)
        order = _children_first(tree)
        ends = torch.zeros_like(weight)
        ends[order[order >= 0]] = _stops(order, weight)[order >= 0]
        return ends.unsqueeze(1) * law

    def efficiency_by_depth(self, tree: DraftTree) -> Tensor:
        """The block efficiency of the first 0, 1, ..., L levels of the tree, (B, L + 1), all from the same weights."""
        before, after, _ = self._weights(tree)
        order = _children_first(tree)
        length = torch.where(order >= 0, tree.depth[order] + 1, 0)
        out = []
        for level in range(tree.branching.shape[1] + 1):
            weight = torch.where(tree.depth < level, after, torch.where(tree.depth == level, before, 0))
            out.append((_stops(order, weight) * length).sum(1))
        return torch.stack(out, 1)

    def _verify(self, tree: DraftTree, roots: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Down the first drafts to a leaf, and back up as long as nodes refuse: only then a row is computed."""
        p = self._scored(tree)
        drafts, children = (pad(t, (0, 1), value=-1) for t in (tree.drafts, tree.children))
        slots = torch.arange(children.shape[1], device=p.device)
        node, shape = roots.clone(), (len(roots), len(tree.levels))
        tried, weight = node.new_zeros(shape), p.new_ones(shape)  # drafts, of each node on the way
        rest = p.new_empty(*shape, p.shape[1])

        def law(prompts: Tensor, nodes: Tensor) -> Tensor:
            level, fresh = tree.depth[nodes], tried[prompts, tree.depth[nodes]] == 0
            if bool(fresh.all()):
                return _rows(p, nodes)
            if not bool(fresh.any()):
                return rest[prompts, level]
            return torch.where(fresh.unsqueeze(1), _rows(p, nodes), rest[prompts, level])

        every = going = torch.arange(len(roots), device=p.device)
        while len(going):
            at = node[going]
            level = tree.depth[at]
            slot = tried[going, level]
            x, child = drafts[at, slot], children[at, slot]
            seen = ((children[at] == child.unsqueeze(1)) & (slots < slot.unsqueeze(1))).any(1)
            down, coin = (x >= 0) & ~seen, torch.rand(len(going), dtype=p.dtype, device=p.device, generator=generator)
            ends = (x < 0) & (coin < weight[going, level])

            prompts, nodes, depth, j, x = (t[down] for t in (going, at, level, slot, x))
            wanted = torch.where(j > 0, rest[prompts, depth, x], p[nodes, x])
            drawn = self._draft_law(tree, nodes, j).gather(1, x.unsqueeze(1)).squeeze(1)
            weight[prompts, depth + 1] = (weight[prompts, depth] * (wanted / drawn)).clamp(max=1)
            tried[prompts, depth + 1] = 0
            node[prompts] = child[down]

            back = ~down & ~ends
            prompts, nodes = going[back], torch.where(seen[back], at[back], tree.parent[at[back]])
            if len(prompts):
                depth = tree.depth[nodes]
                q = self._draft_law(tree, nodes, tried[prompts, depth])
                weight[prompts, depth], rest[prompts, depth] = _refused(weight[prompts, depth], law(prompts, nodes), q)
                tried[prompts, depth] += 1
                node[prompts] = nodes
            going = going[~ends]
        return node, draw(law(every, node), 1, generator).squeeze(1)

    def _draft_law(self, tree: DraftTree, nodes: Tensor, slot: Tensor) -> Tensor:
        """The law from which this draft of each node was drawn."""
        q = _rows(tree.q, nodes)
        if self.replacement or not bool((slot > 0).any()):
            return q
        before = torch.arange(tree.drafts.shape[1], device=slot.device) < slot.unsqueeze(1)
        return without(q, torch.where(before, tree.drafts[nodes], -1))

    def _weights(self, tree: DraftTree) -> tuple[Tensor, Tensor, Tensor]:  # (N,), (N,), (N, V)
        """The weight of each node before its children and after them, and the law of the token that it would add."""
        p = self._scored(tree)
        before, after, law = torch.ones_like(p[:, 0]), torch.ones_like(p[:, 0]), p.clone()
        for nodes in tree.levels:
            w, M = before[nodes], law[nodes]
            drafts, children = tree.drafts[nodes], tree.children[nodes]
            for j in range(drafts.shape[1]):
                on = drafts[:, j] >= 0
                if not bool(on.any()):
                    break
                q = self._draft_law(tree, nodes[on], torch.full_like(nodes[on], j))
                x = drafts[on, j].unsqueeze(1)
                ratio = (w[on] * (M[on].gather(1, x) / q.gather(1, x)).squeeze(1)).clamp(max=1)
                new = (children[on, :j] != children[on, j : j + 1]).all(1)  # a duplicate has no second chance
                before[children[on, j][new]] = ratio[new]
                w[on], M[on] = _refused(w[on], M[on], q)
            after[nodes], law[nodes] = w, M
        return before, after, law


@dataclass(frozen=True)
class Block(Traversal):
    """Block verification: `Traversal` on single paths, which it keeps to.

    Of all verifications that know a single path it has the largest block efficiency.

    Reference: Sun, Mendlovic, Leviathan, Aharoni, Ro, Beirami & Suresh (2024), Block verification accelerates
    speculative decoding, arXiv 2403.10444.
    """

    def _scored(self, tree: DraftTree) -> Tensor:
        if tree.drafts.shape[1] > 1:
            refuse("tree", "single paths", f"{tree.drafts.shape[1]} drafts at a node", "Use Traversal().")
        return super()._scored(tree)


def _refused(
    weight: Tensor,  # (n,)
    law: Tensor,  # (n, V)
    q: Tensor,  # (n, V)
) -> tuple[Tensor, Tensor]:
    """The weights and laws of nodes after a draft from q was refused."""
    rest = (weight.unsqueeze(1) * law).sub_(q).clamp_(min=0)
    mass = rest.sum(1)
    left = mass + (1 - weight)  # exactly the mass at the root, whose weight stays 1
    # w = 1 and M = q: the child accepts surely, and what follows is never used
    sure, some = left <= _NOTHING, (mass > _NOTHING).unsqueeze(1)
    rest.div_(torch.where(some, mass.unsqueeze(1), 1))
    law = rest if bool(some.all()) else torch.where(some, rest, law)
    return torch.where(sure, 1, mass / torch.where(sure, 1, left)), law


def _rows(laws: Tensor, nodes: Tensor | slice) -> Tensor:
    """The rows of these nodes, without a copy where it is one."""
    if isinstance(nodes, Tensor) and len(nodes) == 1:
        return laws.narrow(0, int(nodes), 1)
    return laws[nodes]


def _children_first(tree: DraftTree) -> Tensor:  # (B, n)
    """For each prompt its nodes, children before parents, padded with -1."""
    rank = _postorder(tree)
    counts = torch.bincount(tree.prompt, minlength=tree.n_prompts)
    order = rank.new_full((tree.n_prompts, int(counts.max()) if len(counts) else 0), -1)
    order[tree.prompt, rank] = torch.arange(len(tree), device=rank.device)
    return order


def _stops(
    order: Tensor,  # (B, n)
    weight: Tensor,  # (N,)
) -> Tensor:  # (B, n)
    """Where the blocks end, if each node in turn accepts with its weight."""
    accept = torch.where(order >= 0, weight[order], 0)
    alive = pad((1 - accept).cumprod(1)[:, :-1], (1, 0), value=1.0)
    return alive * accept


def _postorder(tree: DraftTree) -> Tensor:  # (N,)
    """The place of each node among those of its prompt, children in the order of drawing and before their parent."""
    size = torch.ones_like(tree.tokens)
    for nodes in tree.levels[:0:-1]:
        size.index_add_(0, tree.parent[nodes], size[nodes])
    begin = torch.zeros_like(size)
    for nodes in tree.levels[1:]:
        parent = tree.parent[nodes]
        before = size[nodes].cumsum(0) - size[nodes]
        start = torch.full_like(size, len(tree)).scatter_reduce(0, parent, before, "amin")
        begin[nodes] = begin[parent] + before - start[parent]
    return begin + size - 1


def block_efficiency_bound(tree: DraftTree) -> Tensor:  # (B,)
    r"""An upper bound of the block efficiency of every lossless verification, estimated without bias from a tree.

        E[length] <= 1 + sum over texts y of min(p(y), Pr(y is in the tree))
                   = E over trees of sum over nodes y of min(1, p(y)/Pr(y is in the tree)),

    as the text that is written has the target's law and what is kept was in the tree. Mean over trees bounds mean over
    trees; on a single tree a verification may be above.

    Raises:
        InvalidInput: a tree without the target's laws, or whose drafts are not drawn with replacement.
    """
    if tree.p is None or tree.scheme != "with_replacement":
        got = "one without p" if tree.p is None else repr(tree.scheme)
        refuse("tree", "a tree with the target's laws and drafts drawn 'with_replacement'", got)
    each = tree.along(tree.q)
    found = torch.ones_like(each)  # Pr(the way from here to the node is drawn | this node's draw was made)
    step = torch.arange(len(tree), device=each.device)  # climbs from every node to its root
    k = torch.cat([tree.branching, tree.branching.new_zeros(tree.n_prompts, 1)], 1)
    for _ in range(len(tree.levels) - 1):
        inside = tree.depth[step] > 0
        draws = k[tree.prompt[step], (tree.depth[step] - 1).clamp(min=0)]
        once = torch.where(inside, each[step] * found, 0)
        found = torch.where(inside, -torch.expm1(draws * torch.log1p(-once.clamp(max=1))), found)
        step = torch.where(inside, tree.parent[step], step)
    written = tree.product_along(tree.along(tree.p))
    return tree.per_prompt((written / found).clamp(max=1))


_METHODS: dict[str, Verification] = {
    "naive": TopDown(NaiveSelector()),
    "nss": TopDown(NSSSelector()),
    "spectr": TopDown(KSeqSelector()),
    "specinfer": TopDown(SpecInferSelector()),
    "specinfer-without-replacement": TopDown(SpecInferSelector(replacement=False)),
    "greedy": TopDown(GreedySelector()),
    "tournament": TopDown(TournamentSelector()),
    "traversal": Traversal(),
    "traversal-without-replacement": Traversal(replacement=False),
    "block": Block(),
}


def find_verification(method: str | Verification | TokenSelector) -> Verification:
    """The verification of a name; a selector is walked top-down.

    Raises:
        InvalidInput: an unknown name.
    """
    if isinstance(method, Verification):
        return method
    if isinstance(method, TokenSelector):
        return TopDown(method)
    if method not in _METHODS:
        refuse("method", "one of " + ", ".join(map(repr, _METHODS)), repr(method))
    return _METHODS[method]

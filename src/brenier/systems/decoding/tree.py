"""Draft trees: what a draft model proposes to write next, in many versions that share their beginnings.

A tree is flat: tensors with one entry a node, parents before children, level after level. A root stands for a prompt,
so that one tree holds the proposals for a batch of prompts. What the verification needs at a node is the tuple of
tokens that were drawn there, in the order in which they were drawn and with duplicates; nodes for equal tokens are
merged, and the target scores each of them once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..._inputs import is_count
from ...errors import refuse
from .laws import Scheme, check_scheme, sample_drafts

__all__ = ["DraftTree", "branching_matrix", "delayed", "draft_tree"]


@dataclass(frozen=True, eq=False)
class DraftTree:
    """N nodes below B prompts; node b < B is the root of prompt b.

    Attributes:
        tokens: (N,) the token of each node, -1 at roots.
        parent: (N,) the node before, -1 at roots.
        depth: (N,) tokens from the root, 0 at roots.
        prompt: (N,) the prompt that a node belongs to.
        drafts: (N, K) tokens drawn at each node, in the order of drawing, padded with -1 at the end.
        children: (N, K) the node of each of these drafts; equal drafts have one node.
        branching: (B, L) drafts that each draw of a level makes on the next.
        scheme: how drafts are drawn, see `sample_drafts`.
        q: (N, V) the law that the drafts of a node were drawn from; zero where none were.
        p: (N, V) the target's law after each node, once it is known.
    """

    tokens: Tensor
    parent: Tensor
    depth: Tensor
    prompt: Tensor
    drafts: Tensor
    children: Tensor
    branching: Tensor
    scheme: Scheme
    q: Tensor
    p: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def n_prompts(self) -> int:
        """The number B of prompts."""
        return len(self.branching)

    @cached_property
    def levels(self) -> list[Tensor]:
        """The nodes of each depth, roots first."""
        return list(torch.arange(len(self), device=self.tokens.device).split(torch.bincount(self.depth).tolist()))

    @cached_property
    def multiplicity(self) -> Tensor:
        """How many draws made each node, (N,); 1 for roots."""
        drawn = torch.bincount(self.children[self.children >= 0], minlength=len(self))
        return torch.where(self.depth == 0, 1, drawn)

    @cached_property
    def ancestors(self) -> Tensor:
        """The mask of tree attention, (N, N): whether the second node is the first one, or on the way to it."""
        mask = torch.eye(len(self), dtype=torch.bool, device=self.tokens.device)
        for nodes in self.levels[1:]:
            mask[nodes] |= mask[self.parent[nodes]]
        return mask

    @cached_property
    def paths(self) -> Tensor:
        """The tokens from the root to each node, (N, largest depth), padded with -1 at the end."""
        paths = self.tokens.new_full((len(self), len(self.levels) - 1), -1)
        for depth, nodes in enumerate(self.levels[1:]):
            paths[nodes] = paths[self.parent[nodes]]
            paths[nodes, depth] = self.tokens[nodes]
        return paths

    @property
    def is_leaf(self) -> Tensor:
        """Where nothing was drawn, (N,)."""
        return (self.drafts < 0).all(-1)

    def along(
        self,
        laws: Tensor,  # (N, V)
    ) -> Tensor:  # (N,)
        """The probability of each node's token under the law of its parent; 1 at roots."""
        one = laws.new_ones(self.n_prompts)
        rest = slice(self.n_prompts, None)
        return torch.cat([one, laws[self.parent[rest], self.tokens[rest]]])

    def product_along(
        self,
        factors: Tensor,  # (N,)
    ) -> Tensor:  # (N,)
        """The product of a factor over each node and what is on the way to it, without the root."""
        out = torch.ones_like(factors)
        for nodes in self.levels[1:]:
            out[nodes] = out[self.parent[nodes]] * factors[nodes]
        return out

    def per_prompt(
        self,
        values: Tensor,  # (N,)
    ) -> Tensor:  # (B,)
        """Sums over the nodes of each prompt."""
        return values.new_zeros(self.n_prompts).index_add(0, self.prompt, values)

    def scored(
        self,
        p: Tensor,  # (N, V)
    ) -> DraftTree:
        """The tree with the target's laws after each node."""
        if p.shape != self.q.shape:
            refuse("p", f"one law for each node, {tuple(self.q.shape)}", f"shape {tuple(p.shape)}")
        return replace(self, p=p)

    def part(
        self,
        branching: Tensor,  # (B, L)
    ) -> DraftTree:
        """The tree that the same draws give with fewer drafts a level, or fewer levels: the first drafts of each node.

        Its law is that of a tree which is drawn with this branching, so that one tree, scored once, stands for many
        smaller ones.

        Args:
            branching: drafts of each level, nowhere more than the tree's own; levels that are left out have none.

        Raises:
            InvalidInput: more drafts than the tree has, or greedy drafts, the last of which has a law of its own.

        Complexity: O(N V) time and memory, for the laws of the nodes that are left.
        """
        if self.scheme == "greedy":
            refuse("tree", "drafts drawn with or without replacement", "'greedy' ones")
        missing = self.branching.shape[1] - branching.shape[-1]
        fits = branching.dim() == 2 and len(branching) == self.n_prompts and missing >= 0
        if not fits or bool(((branching < 0) | (branching > self.branching[:, : branching.shape[-1]])).any()):
            got = f"shape {tuple(branching.shape)}" + (", with more drafts" if fits else "")
            refuse("branching", f"at most that of the tree, of shape {tuple(self.branching.shape)}", got)
        k = pad(branching, (0, missing + 1))
        slots = torch.arange(self.drafts.shape[1], device=self.tokens.device)
        draws = (self.depth == 0).long()  # that are left, of each node
        kept = torch.zeros_like(self.drafts, dtype=torch.bool)
        for depth, nodes in enumerate(self.levels):
            # which of the draws of a node are left does not depend on what they drew: take the first
            count = draws[nodes] * k[self.prompt[nodes], depth]
            kept[nodes] = (slots < count.unsqueeze(1)) & (self.drafts[nodes] >= 0)
            into = self.children[nodes][kept[nodes]]
            draws.index_add_(0, into, torch.ones_like(into))
        left = draws > 0
        place = left.cumsum(0) - 1
        kept = kept[left]
        width = int(kept.sum(1).max()) if len(kept) else 0
        kept, parent = kept[:, :width], self.parent[left]
        return DraftTree(
            tokens=self.tokens[left],
            parent=torch.where(parent < 0, -1, place[parent]),
            depth=self.depth[left],
            prompt=self.prompt[left],
            drafts=torch.where(kept, self.drafts[left, :width], -1),
            children=torch.where(kept, place[self.children[left, :width]], -1),
            branching=branching,
            scheme=self.scheme,
            q=torch.where(kept.any(1, keepdim=True), self.q[left], 0),
            p=None if self.p is None else self.p[left],
        )


def delayed(num_drafts: int, trunk_length: int, branch_length: int) -> tuple[int, ...]:
    """The branching of a delayed tree: one path of `trunk_length`, then `num_drafts` independent ones from its end.

    Without a trunk these are root rollouts; without branches, or for one draft, a single path.

    Raises:
        InvalidInput: num_drafts < 1, or a negative length.

    Example:
        >>> delayed(4, 2, 3)
        (1, 1, 4, 1, 1)
    """
    if num_drafts < 1 or trunk_length < 0 or branch_length < 0:
        refuse(
            "num_drafts, trunk_length, branch_length",
            "integers >= 1, >= 0 and >= 0",
            f"{num_drafts}, {trunk_length}, {branch_length}",
        )
    return (1,) * trunk_length + ((num_drafts,) + (1,) * (branch_length - 1) if branch_length else ())


def branching_matrix(branching: Sequence[Sequence[int]]) -> Tensor:  # (B, L)
    """The branching of each prompt as a matrix, padded with 0.

    Raises:
        InvalidInput: entries that are no positive integers.
    """
    if not all(is_count(k) for row in branching for k in row):
        refuse("branching", "positive integers, one a level", repr(branching))
    length = max(map(len, branching), default=0)
    rows = [[*row, *[0] * (length - len(row))] for row in branching]
    return torch.tensor(rows, dtype=torch.long).reshape(len(rows), length)


def draft_tree(
    law: Callable[[DraftTree, Tensor], Tensor],
    branching: Tensor,  # (B, L)
    vocab_size: int,
    *,
    scheme: Scheme = "with_replacement",
    sampler: Callable[[Tensor, Tensor, Scheme, torch.Generator | None], Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> DraftTree:
    """Draw a tree, level by level, with one call of the draft model a level.

    With replacement each draw of a level draws branching[b, level] tokens on its own, so that equal draws, which share
    a node, put their draws together there. With the other schemes all drafts of a node differ.

    Args:
        law: given the tree so far and some of its nodes (n,), the draft's laws after these nodes, (n, V) in float64.
        branching: drafts of each level, for each prompt, 0 from where a prompt's drafts end; see `branching_matrix`.
        vocab_size: V.
        scheme: how the drafts of a node are drawn, see `sample_drafts`.
        sampler: draws them, with the signature of `sample_drafts`, which it is when None; to script the draws.
        generator: of the draws.

    Raises:
        InvalidInput: an unknown scheme.

    Complexity: memory O(N V), for the laws that the verification needs. Of time, nothing but the draft model and one
    draw a token.

    Example:
        >>> import torch
        >>> law = lambda tree, nodes: torch.tensor([[0.5, 0.5]], dtype=torch.float64).expand(len(nodes), 2)
        >>> tree = draft_tree(law, branching_matrix([[3, 1]]), 2, generator=torch.Generator().manual_seed(0))
        >>> tree.tokens, tree.multiplicity
        (tensor([-1,  1,  0,  1,  1]), tensor([1, 2, 1, 2, 1]))
    """
    check_scheme(scheme)
    device = branching.device
    n_prompts, n_levels = branching.shape
    roots = torch.full((n_prompts,), -1, device=device)
    nothing = roots.new_zeros((n_prompts, 0))
    tree = DraftTree(
        tokens=roots,
        parent=roots,
        depth=torch.zeros_like(roots),
        prompt=torch.arange(n_prompts, device=device),
        drafts=nothing,
        children=nothing,
        branching=branching,
        scheme=scheme,
        q=torch.zeros(0, vocab_size, dtype=torch.float64, device=device),
    )
    nodes, draws = tree.prompt, torch.ones_like(roots)
    drafts, children, laws = [], [], []
    for level in range(n_levels + 1):
        k = draws * branching[tree.prompt[nodes], level] if level < n_levels else torch.zeros_like(draws)
        inner = k > 0
        q = torch.zeros(len(nodes), vocab_size, dtype=torch.float64, device=device)
        width = int(k.max()) if len(k) else 0
        drawn = k.new_full((len(nodes), width), -1)
        if width:
            q[inner] = law(tree, nodes[inner])
            drawn[inner] = (sampler or sample_drafts)(q[inner], k[inner], scheme, generator)
        equal = (drawn.unsqueeze(2) == drawn.unsqueeze(1)) & (drawn >= 0).unsqueeze(1)
        first = equal.int().argmax(-1) if width else drawn  # the first slot with the same token
        row, slot = ((first == torch.arange(width, device=device)) & (drawn >= 0)).nonzero(as_tuple=True)
        new = len(tree) + torch.arange(len(row), device=device)
        node = torch.full_like(drawn, -1).index_put((row, slot), new).gather(1, first)
        drafts.append(drawn)
        children.append(torch.where(drawn >= 0, node, -1))
        laws.append(q)
        if not len(row):
            break
        draws = equal[row, slot].sum(-1) if scheme == "with_replacement" else torch.ones_like(new)
        tree = replace(
            tree,
            tokens=torch.cat([tree.tokens, drawn[row, slot]]),
            parent=torch.cat([tree.parent, nodes[row]]),
            depth=torch.cat([tree.depth, torch.full_like(new, level + 1)]),
            prompt=torch.cat([tree.prompt, tree.prompt[nodes[row]]]),
        )
        nodes = new
    width = max(t.shape[1] for t in drafts)
    return replace(
        tree,
        drafts=torch.cat([pad(t, (0, width - t.shape[1]), value=-1) for t in drafts]),
        children=torch.cat([pad(t, (0, width - t.shape[1]), value=-1) for t in children]),
        q=torch.cat(laws),
    )

"""Verification of draft trees in plain PyTorch: one prompt, one node, one draft at a time, as the papers write it.

`verify(tree, method, generator)` returns the node at which each block ends and the token after it. Only rows that are
visited are touched, in float64 as they are; nothing is checked.
"""

import torch


def verify(tree, method, generator):
    walk = _traversal if method == "traversal" else _top_down
    return [walk(tree, root, method, generator) for root in range(tree.n_prompts)]


def best_rate(p, q, k):
    """The optimal acceptance rate of k drafts with replacement, by a sort of the vocabulary."""
    order = (q / p).argsort(dim=-1, descending=True)
    p, q = p.gather(-1, order).cumsum(-1), q.gather(-1, order).cumsum(-1)
    return 1 + (p - q**k).amin(-1).clamp(max=0)


def _coin(generator):
    return float(torch.rand((), dtype=torch.float64, generator=generator))


def _draw(law, generator):
    return int(torch.multinomial(law, 1, generator=generator))


def _residual(r):
    r = r.clamp(min=0)
    return r / r.sum()


def _children(tree, node):
    return [(x, c) for x, c in zip(tree.drafts[node].tolist(), tree.children[node].tolist()) if x >= 0]


def _top_down(tree, node, method, generator):
    while True:
        p, q, children = tree.p[node], tree.q[node], _children(tree, node)
        token = _draw(p, generator) if not children else _RULES[method](p, q, [x for x, _ in children], generator)
        below = [c for x, c in children if x == token]
        if not below:
            return node, token
        node = below[0]


def _nss(p, q, drafts, generator):
    return _draw(p, generator)


def _naive(p, q, drafts, generator):
    x = drafts[0]
    return x if _coin(generator) < float(p[x] / q[x]) else _draw(_residual(p - q), generator)


def _specinfer(p, q, drafts, generator):
    for x in drafts:
        if _coin(generator) < float(p[x] / q[x]):
            return x
        p = _residual(p - q)
    return _draw(p, generator)


def _spectr(p, q, drafts, generator):
    k, low, high = len(drafts), 1.0, float(len(drafts))
    while high - low > 1e-9:
        rho = (low + high) / 2
        beta = float(torch.minimum(p / rho, q).sum())
        low, high = (low, rho) if 1 - (1 - beta) ** k <= rho * beta else (rho, high)
    for x in drafts:
        if _coin(generator) < float(p[x] / (high * q[x])):
            return x
    shared = torch.minimum(p / high, q)
    beta = float(shared.sum())
    return _draw(_residual(p - (1 - (1 - beta) ** k) / beta * shared), generator)


_RULES = {"nss": _nss, "naive": _naive, "specinfer": _specinfer, "spectr": _spectr}


def _traversal(tree, root, method, generator):
    def below(node, weight):
        """Where the block ends in this subtree, or None."""
        p, q, seen = tree.p[node], tree.q[node], set()
        for x, child in _children(tree, node):
            found = None if child in seen else below(child, min(1.0, weight * float(p[x] / q[x])))
            if found:
                return found
            seen.add(child)
            rest = (weight * p - q).clamp(min=0)
            mass = float(rest.sum())
            weight = 1.0 if mass + 1 - weight <= 0 else mass / (mass + 1 - weight)
            p = rest / mass if mass else p
        return (node, _draw(p, generator)) if node == root or _coin(generator) < weight else None

    return below(root, 1.0)

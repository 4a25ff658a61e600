from typing import NamedTuple

import numpy as np
import ot


class SimplexResult(NamedTuple):
    rows: object
    cols: object
    mass: object
    f: object
    g: object
    n_iter: int
    optimal: bool


def native_available():
    return True


def network_simplex(cost, a, b, *, f=None, g=None, max_iter=None, engine="auto"):
    G, log = ot.emd(np.ascontiguousarray(a), np.ascontiguousarray(b), cost, log=True, numItermax=10**7)
    r, c = G.nonzero()
    return SimplexResult(r, c, G[r, c], log["u"], log["v"], 0, True)

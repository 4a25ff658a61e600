"""The polynomials of `src/native/simd_exp2.hpp`: minimax of the relative error of 2^r on [0, 1), by Remez exchange.

Run `python benchmarks/exp2_coefficients.py`; needs mpmath, which comes with torch.
"""

from __future__ import annotations

import mpmath as mp
import numpy as np


def minimax(degree: int) -> tuple[list[mp.mpf], mp.mpf]:
    """Return the coefficients, the constant first, and the largest relative error."""
    mp.mp.dps = 60
    count, fine = degree + 2, 200 * (degree + 2)
    grid = [mp.mpf(i) / fine for i in range(fine + 1)]
    nodes = [(1 - mp.cos(mp.pi * i / (count - 1))) / 2 for i in range(count)]
    for _ in range(30):
        # P(x) 2^-x - 1 = +-level in turn on the nodes
        system = mp.matrix(count, count)
        for i, x in enumerate(nodes):
            for k in range(degree + 1):
                system[i, k] = mp.power(2, -x) * x**k
            system[i, degree + 1] = (-1) ** i
        solution = mp.lu_solve(system, mp.ones(count, 1))
        coefficients, level = list(solution)[:-1], abs(solution[degree + 1])
        error = [mp.polyval(coefficients[::-1], x) * mp.power(2, -x) - 1 for x in grid]
        worst = max(abs(e) for e in error)
        if worst - level < mp.mpf(10) ** -8 * worst:
            break
        # the new nodes: the extreme of each run of one sign, sharpened by a parabola
        runs = [0]
        for i in range(1, fine + 1):
            if mp.sign(error[i]) != mp.sign(error[runs[-1]]):
                runs.append(i)
            elif abs(error[i]) > abs(error[runs[-1]]):
                runs[-1] = i
        if len(runs) != count:
            break
        nodes = []
        for i in runs:
            shift = mp.mpf(0)
            if 0 < i < fine:
                left, here, right = error[i - 1 : i + 2]
                shift = (left - right) / (2 * (left - 2 * here + right))
            nodes.append((i + shift) / fine)
    return coefficients, worst


if __name__ == "__main__":
    for name, kind, degree in (("float", np.float32, 5), ("double", np.float64, 11)):
        coefficients, worst = minimax(degree)
        print(f"{name}, degree {degree}: {mp.nstr(worst, 3)}")
        for c in coefficients:
            print("   ", float(kind(float(c))).hex())

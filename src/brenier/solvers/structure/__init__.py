"""Solvers of quadratic problems: plans between spaces that are known by their inner structure."""

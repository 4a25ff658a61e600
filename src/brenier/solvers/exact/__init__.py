"""Solvers of the unregularised problem."""

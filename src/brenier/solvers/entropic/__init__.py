"""Solvers of the entropic problem."""

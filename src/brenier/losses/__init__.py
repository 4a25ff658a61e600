"""Differentiable losses and layers on the core."""

from .doubly_stochastic import DoublyStochastic, Scaled, doubly_stochastic, marginal_error

__all__ = ["DoublyStochastic", "Scaled", "doubly_stochastic", "marginal_error"]

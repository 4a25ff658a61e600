"""Solvers that climb the dual of a problem with a regularizer other than entropy."""

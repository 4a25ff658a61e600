"""The command line: brenier solve | list | run | report | demo | data."""

from .app import main

__all__ = ["main"]

"""The command line: brenier solve | list | run | report | demo | decode | data."""

from .app import main

__all__ = ["main"]

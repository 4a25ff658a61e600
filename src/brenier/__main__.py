"""`python -m brenier` is the command line."""

from .cli import main

main()

"""What benchmarks/entropic.py is made of: problem sets, methods, a judge that trusts none of them, and a worker."""

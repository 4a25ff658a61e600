"""Transport from a law that can be sampled or integrated to atoms."""

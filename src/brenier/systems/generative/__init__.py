"""Systems for people who train generative models."""

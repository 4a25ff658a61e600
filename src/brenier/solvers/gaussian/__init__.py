"""Transport between Gaussians and their mixtures, by formulas."""

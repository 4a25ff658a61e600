"""The inner loops over pairs of points: one interface, several engines."""

"""Transport maps as estimators: learned from two clouds, applied to new points."""

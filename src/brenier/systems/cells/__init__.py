"""Systems for people who work with cells."""

"""Systems for people who make robots move and decide."""

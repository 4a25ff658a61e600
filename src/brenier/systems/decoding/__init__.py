"""Systems for people who serve language models."""

"""Systems for people who compute transport itself."""

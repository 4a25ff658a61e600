"""Systems for people who need other kinds of plans."""

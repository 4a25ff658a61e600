"""Barycentres: the measure that is nearest to several, in the mean of transport costs."""

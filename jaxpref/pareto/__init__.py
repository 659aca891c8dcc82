"""Fronts of several objectives: one policy a weight vector, measured on the same data and reported together."""

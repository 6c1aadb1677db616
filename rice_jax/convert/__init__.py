"""Weights of other programs, to start from."""

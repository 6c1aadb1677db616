"""Converts weights of other programs, and exports to them."""

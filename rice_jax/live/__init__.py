"""In use: an index of a shop's pictures, and what is recognised with it."""

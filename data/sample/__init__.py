"""The simulator: a sample shop, and programs that make livestreams of its products."""

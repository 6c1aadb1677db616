"""From data sets on disk to batches of pixels."""

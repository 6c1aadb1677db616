"""Input pipeline: data sets on disk become batches of pixels."""

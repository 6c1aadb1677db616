"""Numbers: embeddings, rankings, metrics, calibration, and the files that hold them."""

"""From embeddings to rank-k: ranking inside galleries, metrics, tables and files."""

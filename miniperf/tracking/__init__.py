"""Many averages along one run: each is evaluated beside the raw weights, and no snapshot is written to disk."""

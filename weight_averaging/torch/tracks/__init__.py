"""What is kept of a model's past weights."""

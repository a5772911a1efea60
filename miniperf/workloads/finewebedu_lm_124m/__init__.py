"""The paper's language model, at full size."""

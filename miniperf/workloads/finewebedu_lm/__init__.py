"""Decoder-only language models on tokenised documents: the paper's of 124 million parameters, and its miniature."""

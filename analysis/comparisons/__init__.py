"""Comparisons of variants, as the paper's experiments: which runs, and what is drawn of them."""

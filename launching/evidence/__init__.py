"""The runs of docs/results/rules.md, second part: which there are, and making them one after the other."""

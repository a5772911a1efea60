"""The runs of docs/results/rules.md, second part: from their numbers by seed to its conclusions, tables and figures."""

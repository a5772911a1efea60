"""Command-line entry points: `python -m scripts.run --help`, and so on."""

"""Command-line entry points: `python -m scripts.run --help`, and so on."""

import sys

from weight_averaging import interrupts

if sys.argv[0] == "-m":  # one of them is about to run: until its work begins Ctrl-C is one line
    interrupts.end_at_once()

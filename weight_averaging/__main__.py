"""`python -m weight_averaging` is the command `weight-averaging`."""

from weight_averaging.cli import main

main()

"""One page about a folder of runs."""

"""Averages of a stream of snapshots, each read once."""

"""Submissions to AlgoPerf: NadamW and its weight-averaged variants, each in a folder of its own."""

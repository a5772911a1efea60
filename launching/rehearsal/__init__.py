"""Dress rehearsals: the harness's own runner over small data sets in the official layouts, killed, resumed, checked."""

"""Averaging on a GPU: its tests, and what it costs there."""

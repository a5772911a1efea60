"""Analyses of published logs."""

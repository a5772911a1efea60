"""Averages to files."""

from weight_averaging.offline.writing.to_files import average_to_files

__all__ = ["average_to_files"]

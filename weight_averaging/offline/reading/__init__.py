"""Saved snapshots: found, put in order, read."""

from weight_averaging.offline.reading.snapshots import Snapshots

__all__ = ["Snapshots"]

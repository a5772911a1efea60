"""The averager's state beside a checkpoint's other files: one file, or a folder of shards."""

import logging
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from weight_averaging.atomic_file import replacing
from weight_averaging.torch import Averager

logger = logging.getLogger("weight_averaging")


def save_state(state: dict[str, Any], folder: Path, name: str, writes: bool) -> None:
    """Save a state into the folder of a checkpoint; of shards collective.

    Args:
        name: of the file, without `.pt`, or of the folder.
        writes: whether this rank writes what all have.
    """
    if not folder.is_dir():
        logger.warning("%s is not there: the state of WeightAveraging is not saved", folder)
    elif _has_shards(state):
        dcp.save({"averager": state}, checkpoint_id=folder / name)
    elif writes:
        with replacing(folder / f"{name}.pt") as stream:
            torch.save(state, stream)


def load_state(averager: Averager, folder: Path, name: str, settings: str) -> bool:
    """Whether the folder has a state; it is loaded then."""
    if (folder / name).is_dir():
        state = {"averager": averager.state_dict()}
        dcp.load(state, checkpoint_id=folder / name)
        averager.load_state_dict(state["averager"], settings=settings)
        return True
    if (folder / f"{name}.pt").is_file():
        saved = torch.load(folder / f"{name}.pt", map_location="cpu", weights_only=True)
        averager.load_state_dict(saved, settings=settings)
        return True
    return False


def _has_shards(state: dict[str, Any]) -> bool:
    return any(isinstance(vector, dict) for track in state["tracks"] for vector in track["vectors"])

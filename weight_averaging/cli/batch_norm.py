"""The user's function behind `--recompute-batch-norm`."""

import os
from typing import TYPE_CHECKING

from weight_averaging.averages import SnapshotError
from weight_averaging.cli.descriptions import imported

if TYPE_CHECKING:
    from weight_averaging.offline.writing.batch_norm import Recompute


def recomputing(text: str | None) -> "Recompute | None":
    """The function at MODULE:FUNCTION; None for None. SnapshotError if there is none."""
    if text is None:
        return None
    flag = f"--recompute-batch-norm {text}"
    module, _, name = text.partition(":")
    if not module or not name:
        raise SnapshotError(f"{flag}: expected MODULE:FUNCTION, as mine:model_and_batches")
    function = getattr(imported(module, flag), name, None)
    if not callable(function):
        raise SnapshotError(f"{flag}: {module} has no function {name}")
    import torch

    torch.set_num_threads(os.cpu_count() or 1)  # the model runs
    made: Recompute = function
    return made

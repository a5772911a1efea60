"""TensorBoard's event files: scalars on one axis, completed updates, and the run's line in the HParams tab."""

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


class Events:
    """Events of a trial, beside its other log files; nothing but a line of log where tensorboard is not installed.

    Args:
        folder: the trial's; hparams.json and meta_data_*.json there tell what the HParams tab shows.
        step: completed updates that the run goes on from. TensorBoard drops the points after it that a killed run left.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._writer: Any = None
        # Not before a run starts: beside an installed TensorFlow, as under the official harness, it takes ten seconds.
        try:
            from torch.utils.tensorboard import SummaryWriter
            from torch.utils.tensorboard.summary import hparams as hparams_summaries
        except ImportError:  # the csv files have all numbers too
            logger.warning("no events for TensorBoard, which is not installed: pip install tensorboard")
            return
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)
        experiment, start, self._end = hparams_summaries(*_of_hparams_tab(folder))
        for summary in (experiment, start):
            self._add(summary)

    def scalars(self, values: Mapping[str, float], completed: int) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, completed)

    def flush(self) -> None:
        """What came so far is in the file, even if the run is killed now."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Mark the run as complete."""
        if self._writer is not None:
            self._add(self._end)
            self._writer.close()

    def _add(self, summary: Any) -> None:
        assert self._writer is not None
        assert self._writer.file_writer is not None
        self._writer.file_writer.add_summary(summary)


def _of_hparams_tab(folder: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """Hyperparameters and seed of the run, and the names of its metrics, whose values are those of the scalars."""
    meta = max(folder.glob("meta_data_*.json"), key=lambda path: int(re.sub(r"\D", "", path.name)), default=None)
    about = json.loads(meta.read_text()) if meta is not None else {}
    path = folder / "hparams.json"
    values = json.loads(path.read_text()) if path.exists() else {}
    values = {
        name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in values.items()
    }
    metric = about.get("workload", {}).get("target_metric_name")
    splits = ("validation", "test") if metric is not None else ()
    return {**values, "seed": about.get("rng_seed", 0)}, {f"{split}/{metric}": 0.0 for split in splits}

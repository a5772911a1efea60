"""TensorBoard's event files: scalars on one axis, completed updates, and the run's line in the HParams tab."""

import json
import logging
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

# TensorBoard sorts groups of tags by name and opens the first.
GROUPS = ("validation", "test", "train", "training", "averaging", "clock")


def tag_of(name: str, own: str, workload: str = "") -> str:
    """A metric's name with its group numbered, `1_validation/mini_wmt/bleu`; `own` is the group of one without any.

    Runs of a tag share a card and its axis. So a workload has tags of its own.
    """
    group, _, rest = name.rpartition("/") if "/" in name else (own, "", name)
    return "/".join(filter(None, (f"{1 + GROUPS.index(group)}_{group}", workload, rest))) if group in GROUPS else name


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
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError:  # the csv files have all numbers too
            logger.warning("no events for TensorBoard, which is not installed: pip install tensorboard")
            return
        self._event = Event
        self._writer = EventFileWriter(str(folder))
        self._add(step + 1, file_version="brain.Event:2")
        self._add(step + 1, session_log=SessionLog(status=SessionLog.START))  # from this step on all comes again
        values, metrics = _of_hparams_tab(folder)
        self._workload = str(values.get("workload", ""))
        tags = {name: tag_of(name, "clock", self._workload) for name in metrics}
        experiment, start, self._end = _hparams_summaries(values, tags)
        for summary in (experiment, start):
            self._add(None, summary=summary)

    def scalars(self, values: Mapping[str, float], completed: int, own: str) -> None:
        """Values by name, and the group of names without one; not the numbers of examples, which never change."""
        if self._writer is not None:
            from tensorboard.compat.proto.summary_pb2 import Summary

            for name, value in values.items():
                if name.endswith("/num_examples"):
                    continue
                tag = tag_of(name, own, self._workload)
                self._add(completed, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)]))

    def flush(self) -> None:
        """What came so far is in the file, even if the run is killed now."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Mark the run as complete."""
        if self._writer is not None:
            self._add(None, summary=self._end)
            self._writer.close()

    def _add(self, step: int | None, **what: Any) -> None:
        self._writer.add_event(self._event(wall_time=time.time(), step=step, **what))


def _hparams_summaries(values: dict[str, Any], tags: Mapping[str, str]) -> list[Any]:
    """What the HParams tab reads: of the experiment, and of the start and the end of its one session.

    Args:
        tags: of its metrics, by name.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.plugins.hparams import api_pb2, metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo

    kinds = {bool: api_pb2.DATA_TYPE_BOOL, str: api_pb2.DATA_TYPE_STRING}
    experiment, start = api_pb2.Experiment(), SessionStartInfo()
    for name, value in values.items():
        # Those that "differ" are the first columns, of which five are shown unless more are ticked.
        first = name in ("submission", "workload", "seed")
        kind = kinds.get(type(value), api_pb2.DATA_TYPE_FLOAT64)
        experiment.hparam_infos.add(name=name, type=kind, differs=first)
        field = {bool: "bool_value", str: "string_value"}.get(type(value), "number_value")
        setattr(start.hparams[name], field, value)
    for name, tag in tags.items():
        experiment.metric_infos.add(name=api_pb2.MetricName(tag=tag), display_name=name)
    contents = {
        metadata.EXPERIMENT_TAG: HParamsPluginData(experiment=experiment),
        metadata.SESSION_START_INFO_TAG: HParamsPluginData(session_start_info=start),
        metadata.SESSION_END_INFO_TAG: HParamsPluginData(
            session_end_info=SessionEndInfo(status=api_pb2.STATUS_SUCCESS)
        ),
    }
    summaries = []
    for tag, content in contents.items():
        content.version = metadata.PLUGIN_DATA_VERSION
        plugin = SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME, content=content.SerializeToString())
        summaries.append(Summary(value=[Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin))]))
    return summaries


def _of_hparams_tab(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Submission, workload, seed and hyperparameters of the run, and the names of its metrics, whose values the scalars
    have."""
    about, flags = _last(folder, "meta_data"), _last(folder, "flags")
    submission = flags.get("submission") or Path(flags.get("submission_path") or "").parent.name
    run = {"submission": submission, "workload": flags.get("workload")}
    path = folder / "hparams.json"
    values = {name: value for name, value in run.items() if value} | {"seed": about.get("rng_seed", 0)}
    values |= json.loads(path.read_text()) if path.exists() else {}
    values = {
        name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in values.items()
    }
    metric = about.get("workload", {}).get("target_metric_name")
    splits = ("validation", "test") if metric is not None else ()
    return values, [f"{split}/{metric}" for split in splits]


def _last(folder: Path, kind: str) -> dict[str, Any]:
    """The file `<kind>_K.json` of the highest K, which a resumed run has written last; empty if there is none."""
    path = max(folder.glob(f"{kind}_*.json"), key=lambda path: int(re.sub(r"\D", "", path.name)), default=None)
    return json.loads(path.read_text()) if path is not None else {}

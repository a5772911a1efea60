"""The snapshots that are best by a metric which the checkpoints hold, as the mean of the best N needs them.

One rule. The metric is taken from the first of these places that all checkpoints have:

1. What a checkpoint holds (`weight_averaging.offline.forms.contents.scores`). That is the metric of this name, or the
   only one whose last word after a dot it is. Of a Trainer's log it is also the one with `eval_` before.
2. The number after it in the checkpoint's name: `val_loss=0.12`, `best_loss_3.45`, `acc-0.91`.

Which values are better is what the caller says, else what Lightning wrote down (`mode`), else what the name says. Lower
is better for a loss, an error and the like, higher for an accuracy, BLEU and the like. Otherwise it must be said. A
loss that is negative somewhere is no loss for sure. Of equal values the later one is better. What is not finite is not
among the best. Numbers called `best...` are refused: they are those of the best so far, not of the checkpoint.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from weight_averaging.averages import LAWA, SnapshotError
from weight_averaging.offline.forms.contents.scores import Score
from weight_averaging.offline.forms.source import Source
from weight_averaging.offline.forms.trainers import EPOCH_KEYS, STEP_KEYS
from weight_averaging.offline.reading.snapshots import Snapshots

Mode = Literal["min", "max"]

_LOWER = {
    "loss", "err", "error", "perplexity", "ppl", "wer", "cer", "per", "mse", "rmse", "mae", "nll", "bpb", "bpc", "bpd",
    "fid", "ter", "eer", "lpips",
}  # fmt: skip
_HIGHER = {
    "acc", "accuracy", "top1", "top5", "acc1", "acc5", "f1", "auc", "auroc", "bleu", "rouge", "map", "miou", "iou",
    "dice", "precision", "recall", "r2", "psnr", "ssim", "mrr", "ndcg", "exact",
}  # fmt: skip
_NUMBER = r"([+-]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?)(?![\d.,]*\d|[eE][+-]?\d)"
_IN_NAME = re.compile(rf"([A-Za-z][\w/]*?)={_NUMBER}", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class BestMean(LAWA):
    """The plain mean of the best `window` snapshots by a metric, among snapshots of which there are no others."""

    metric: str
    is_mean: ClassVar[bool] = True

    def __str__(self) -> str:
        return f"mean of the best {self.window} by {self.metric}"


@dataclass(frozen=True)
class Best:
    """The best snapshots.

    Attributes:
        snapshots: those alone.
        average: their plain mean, as of the latest of them.
        values: of the metric, by step, the best first.
        rule: where the values are from, and which are better, in words.
    """

    snapshots: Snapshots
    average: BestMean
    values: Mapping[int, float]
    rule: str

    @property
    def steps(self) -> list[int]:
        """Of the snapshots, ascending."""
        return self.snapshots.steps


def best(snapshots: Snapshots, count: int, metric: str, mode: Mode | None = None) -> Best:
    """The `count` snapshots that are best by a metric.

        chosen = offline.best(offline.Snapshots("runs/mine"), 5, "val_loss")
        plan = offline.Plan([(chosen.average, chosen.steps[-1])], chosen.steps)
        for result in plan.run(chosen.snapshots.stream(plan.needed)):
            model.load_state_dict(result.state)

    Args:
        metric: its name in the checkpoints, or in their names.
        mode: "min" if lower values are better, "max" if higher ones are; None: see above.
    Raises:
        SnapshotError: there are not as many with a finite value, one has no value at all, or all have the same. Or it
            is not known which values are better.
    """
    if count < 1:
        raise SnapshotError(f"the best {count}: name a number of checkpoints > 0")
    if mode not in (None, "min", "max"):
        raise SnapshotError(f'mode={mode!r} must be "min" (lower is better) or "max"')
    if not metric:
        raise SnapshotError("the metric has no name: say which")
    if metric.rpartition(".")[2].lower().startswith("best"):
        raise SnapshotError(f"{metric} is the best value so far, not that of each checkpoint: name the metric itself")
    scores = _scores(snapshots, metric)
    values = {step: score.value for step, score in scores.items()}
    if len(values) > 1 and len(set(values.values())) == 1:
        raise SnapshotError(f"{metric} is {values[snapshots.steps[0]]:g} in all {len(values)} checkpoints")
    better, why = _mode(metric, list(scores.values()), mode)
    finite = {step: value for step, value in values.items() if math.isfinite(value)}
    if count > len(finite):
        bad = f" with a finite {metric}" if len(finite) < len(values) else ""
        raise SnapshotError(f"the best {count} are asked for, and there are {len(finite)} checkpoints{bad}")
    sign = 1 if better == "min" else -1
    ranked = sorted(finite, key=lambda step: (sign * finite[step], -step))[:count]
    where = ", ".join(dict.fromkeys(score.where for score in scores.values()))
    rule = f"{metric} is {where}; {'lower' if better == 'min' else 'higher'} is better, {why}"
    return Best(
        snapshots.only(ranked), BestMean(window=count, metric=metric), {step: finite[step] for step in ranked}, rule
    )


def metrics(snapshots: Snapshots) -> dict[str, tuple[float, float]]:
    """The metrics that all checkpoints have and that are not the same in all: the lowest and the highest value."""
    found: dict[str, tuple[float, float]] = {}
    own = [_own_and_named(snapshots.open(step)) for step in snapshots.steps]
    for name in own[0]:
        values = [scores[name].value for scores in own if name in scores]
        if len(values) == len(own) and len(set(values)) > 1 and not name.rpartition(".")[2].startswith("best"):
            found[name] = min(values), max(values)
    return found


def _own_and_named(source: Source) -> dict[str, Score]:
    named = {key: Score(float(text), "") for key, text in _IN_NAME.findall(source.path.name)}
    return {key: score for key, score in named.items() if key not in (*STEP_KEYS, *EPOCH_KEYS)} | dict(source.scores())


def _scores(snapshots: Snapshots, metric: str) -> dict[int, Score]:
    """By step, from the first place that all have. SnapshotError where none is."""
    sources = {step: snapshots.open(step) for step in snapshots.steps}
    lacking: list[int] = []
    places: tuple[Callable[[Source, str], Score | None], ...] = (_own, _named)
    for place in places:
        found = {step: score for step, source in sources.items() if (score := place(source, metric)) is not None}
        if len(found) == len(sources):
            return found
        lacking = lacking or [step for step in sources if step not in found]
    path = sources[lacking[0]].path
    there = [name for name in _own_and_named(sources[lacking[0]]) if not name.rpartition(".")[2].startswith("best")]
    known = f"it has {', '.join(there[:8])}" if there else "it has none at all"
    raise SnapshotError(f"{path} has no number called {metric}: {known}")


def _own(source: Source, metric: str) -> Score | None:
    scores = source.scores()
    if metric in scores:
        return scores[metric]
    same = [name for name in scores if name.rpartition(".")[2] == metric] or [
        n for n in scores if n == f"eval_{metric}"
    ]
    if len(same) > 1:
        raise SnapshotError(f"{source.path} has {len(same)} numbers called {metric}: say which, {', '.join(same[:8])}")
    return scores[same[0]] if same else None


def _named(source: Source, metric: str) -> Score | None:
    # A hyphen after a name is between it and the number: acc-0.91. A sign follows what says so: loss=-0.5.
    number = rf"{re.escape(metric)}[=_:-]?{_NUMBER}"
    name = source.path.name
    found = set(re.findall(rf"(?<!\w){number}", name)) or set(re.findall(rf"(?<![A-Za-z]){number}", name))
    if len(found) > 1:
        raise SnapshotError(f"{source.path} has {len(found)} numbers after {metric} in its name: name the metric whole")
    return Score(float(found.pop()), f"the number after {metric!r} in its name") if found else None


def _mode(metric: str, scores: Sequence[Score], mode: Mode | None) -> tuple[str, str]:
    """Which values are better, and who says so."""
    if mode is not None:
        return mode, "as asked for"
    told = {score.mode for score in scores}
    if len(told) == 1 and (known := told.pop()):
        return known, "as Lightning has it"
    words = set(re.split(r"[^a-z0-9]+", metric.lower()))
    lower, higher = bool(words & _LOWER), bool(words & _HIGHER)
    if lower != higher and "neg" not in words and not (lower and any(score.value < 0 for score in scores)):
        return "min" if lower else "max", "as its name says"
    doubt = "values of it are negative" if lower and not higher else "its name does not say"
    raise SnapshotError(
        f"whether lower or higher values of {metric} are better is not known, since {doubt}: "
        'say which by mode="min" or "max" (--mode min)'
    )

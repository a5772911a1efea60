"""What is seen of a run in the terminal, and what came of it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

from tqdm import tqdm


def summary(workload: Any, evaluations: Sequence[tuple[int, Mapping[str, float]]]) -> str:
    """The best validation metric of a run and the update it is of, and the update that reached the target, in a line.

    Args:
        evaluations: (completed updates, metrics), in the order of training.
    """
    metric, target = f"validation/{workload.target_metric_name}", workload.validation_target_value
    values = {step: metrics[metric] for step, metrics in evaluations if math.isfinite(metrics[metric])}
    if not values:
        return f"no evaluation with a {metric}"
    lower = workload.has_reached_validation_target({metric: -math.inf})  # is better
    best = (min if lower else max)(values, key=values.__getitem__)
    reached = [step for step, value in values.items() if workload.has_reached_validation_target({metric: value})]
    when = f"reached at update {reached[0]}" if reached else "missed"
    return f"best {metric} {values[best]:.5g} at update {best} of {evaluations[-1][0]}, target {target:g} {when}"


class Progress:
    """A bar with loss, learning rate, last validation metric and time left; lines where there is no terminal; and
    nothing if it is not `shown`."""

    def __init__(
        self, workload: Any, name: str, steps: int | None, step: int, eval_results: list[Any], shown: bool = True
    ) -> None:
        self._shown = shown
        self._metric = f"validation/{workload.target_metric_name}"
        self._target = workload.validation_target_value
        self._bar = tqdm(
            total=steps,
            initial=step,
            unit="step",
            disable=None if shown else True,
            dynamic_ncols=True,
            mininterval=0.5,
            desc=name,
        )
        self._validation = eval_results[-1][1][self._metric] if eval_results else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()  # also after Ctrl-C, before anything else is said

    def after_update(self, step: int, latest: dict[str, float], learning_rate: float | None) -> None:
        """`latest`: the last training metrics that were logged."""
        if not self._bar.disable and step % 20 == 0:
            fields = [f"loss {latest['loss']:.4f}"] if "loss" in latest else []
            if learning_rate is not None:
                fields.append(f"lr {learning_rate:.2e}")
            if self._validation is not None:
                fields.append(f"{self._metric} {self._validation:.4f} (target {self._target:g})")
            self._bar.set_postfix_str(", ".join(fields), refresh=False)
        self._bar.update()

    def after_evaluation(self, step: int, result: dict[str, float]) -> None:
        self._validation = result[self._metric]
        if self._bar.disable and self._shown:
            seconds = result["score"]
            value = f"{self._metric} {self._validation:.5f}  (target {self._target:g})"
            print(f"step {step:>6} {seconds:8.1f} s  {value}", flush=True)

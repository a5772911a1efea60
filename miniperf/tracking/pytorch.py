"""Many averages along one run: each is evaluated beside the raw weights, and no snapshot is written to disk.

The runner trains and evaluates as ever (miniperf/runner.py). What it takes for the submission keeps the averages as
well, in the optimizer state, so that they are in every checkpoint. What it takes for the workload evaluates them too.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from torch import nn

from miniperf.tracking.base import Tracked
from weight_averaging.averages import Average
from weight_averaging.torch import Averages


class TrackedSubmission(Tracked):
    """One in PyTorch: its averages are in the optimizer state, and so in every checkpoint."""

    def __init__(self, submission: ModuleType, averages: Mapping[str, Average]) -> None:
        super().__init__(submission, averages)
        self.averages: Averages | None = None  # of the run under way

    def init_optimizer_state(self, workload: Any, model: nn.Module, *arguments: Any) -> dict[str, Any]:
        state = self._submission.init_optimizer_state(workload, model, *arguments)
        if not self._described:
            return state
        self.averages = Averages(model, dict.fromkeys(self._described.values()))  # some may be equal in short runs
        return {**state, "averages": self.averages}

    def update_params(self, *, global_step: int, optimizer_state: dict[str, Any], **arguments: Any) -> Any:
        result = self._submission.update_params(global_step=global_step, optimizer_state=optimizer_state, **arguments)
        if self.averages is not None:
            began = time.perf_counter()
            self.averages.update(global_step + 1)
            self.seconds.append(time.perf_counter() - began)
        return result

    @contextlib.contextmanager
    def averaged(self, name: str, model: Any, model_state: Any) -> Iterator[tuple[Any, Any] | None]:
        """Within the block the model, here the same object, and its state have the average; None if there is none."""
        assert self.averages is not None
        self.averages.select(self._described[name])
        if not self.averages.ready:
            yield None
            return
        with self.averages.averaged() as ready:
            yield (model, model_state) if ready else None


class TrackedWorkload:
    """A workload of another length, at whose evaluations the averages have their turn after the raw weights.

    The target metric of an average is `validation/loss@lawa_1`, with the average's name behind it; one that is not
    ready has none. All else is the workload's own.

    Args:
        workload: whose `step_hint` is replaced.
        submission: has the averages: a `TrackedSubmission`, of here or of jax.py.
        evaluate_every: updates between the evaluations.
        every: evaluations from one of an average to the next, by its name. The last one of a run has all.
        test_every: likewise of the test set.
    """

    def __init__(
        self,
        workload: Any,
        submission: Any,
        step_hint: int,
        evaluate_every: int,
        every: Mapping[str, int],
        test_every: int,
    ) -> None:
        self._workload, self._submission = workload, submission
        self.step_hint = step_hint
        self._evaluate_every, self._every, self._test_every = evaluate_every, dict(every), test_every

    def __getattr__(self, name: str) -> Any:
        return getattr(self._workload, name)

    def attach_metrics_logger(self, metrics_logger: Any) -> None:
        """Nothing is logged between evaluations."""

    def has_reached_validation_target(self, eval_result: dict[str, float]) -> bool:
        """Never: a run is as long as it is planned."""
        return False

    has_reached_test_target = has_reached_validation_target

    def eval_model(
        self, batch_size: int, model: Any, model_state: Any, rng: Any, data_dir: str, _: Any, step: int
    ) -> dict[str, float]:
        """The target metric on the validation set, and on the test set where that is due."""
        number, rest = divmod(step, self._evaluate_every)
        last, first = step >= self.step_hint, bool(rest)  # the runner's, of the very first update
        counts = {"validation": self._workload.num_validation_examples}
        if last or (number % self._test_every == 0 and not first):
            counts["test"] = self._workload.num_test_examples
        metric, result = self._workload.target_metric_name, {}

        def evaluate(behind: str, model: Any, model_state: Any) -> None:
            for split, count in counts.items():
                values = self._workload._eval_model_on_split(
                    split, count, batch_size, model, model_state, rng, data_dir, step
                )
                result[f"{split}/{metric}{behind}"] = float(values[metric])

        evaluate("", model, model_state)
        for name, every in self._every.items():
            if last or (number % every == 0 and not first):
                with self._submission.averaged(name, model, model_state) as averaged:
                    if averaged is not None:
                        evaluate(f"@{name}", *averaged)
        return result

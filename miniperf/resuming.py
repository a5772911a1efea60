"""Where a run is between two updates: into a checkpoint, and out of the last one."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from miniperf import checkpoints, random_utils
from miniperf.frameworks import Framework
from miniperf.settings import Settings
from weight_averaging.errors import UsageError


class CountedQueue:
    """The input queue, counting the batches drawn, so that a resumed run can skip to where it was."""

    def __init__(self, queue: Iterator[Any]) -> None:
        self._queue = queue
        self.drawn = 0

    def __iter__(self) -> "CountedQueue":
        return self

    def __next__(self) -> Any:
        self.drawn += 1
        return next(self._queue)

    def skip(self, batches: int) -> None:
        """As if so many had been drawn; at once where the queue can."""
        if hasattr(self._queue, "skip"):
            self.drawn += batches
            self._queue.skip(batches)
        else:
            for _ in range(batches):
                next(self)


def _train_state() -> dict[str, Any]:
    return {
        "validation_goal_reached": False,
        "test_goal_reached": False,
        "is_time_remaining": True,
        "last_eval_time": 0.0,
        "training_complete": False,
        "accumulated_submission_time": 0.0,
        "accumulated_eval_time": 0.0,
        "accumulated_logging_time": 0.0,
        "last_step_end_time": None,
    }


@dataclass
class State:
    """Where a run is.

    Attributes:
        model, optimizer_state, model_state: what the submission returned last.
        queue: of training batches.
        train_state: goals and clocks, by the names that they have in the official harness.
        eval_results: (completed updates, metrics) of every evaluation.
        global_step: completed updates.
        preemption_count: how often the run was resumed.
    """

    model: Any
    optimizer_state: Any
    model_state: Any
    queue: CountedQueue
    train_state: dict[str, Any] = field(default_factory=_train_state)
    eval_results: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    global_step: int = 0
    preemption_count: int = 0

    def finished(self, settings: Settings) -> bool:
        """Whether there is nothing left to train for."""
        return self.at_last_update(settings) or self.ended_early(settings) is not None

    def at_last_update(self, settings: Settings) -> bool:
        """Whether all updates that were asked for are done."""
        return settings.max_global_steps is not None and self.global_step >= settings.max_global_steps

    def ended_early(self, settings: Settings) -> str | None:
        """Why training is over, whatever number of updates is asked for. None: it is not."""
        if self.train_state["training_complete"]:
            return "its training was complete"
        if not self.train_state["is_time_remaining"]:
            return "its time was used up"
        goals = self.train_state["validation_goal_reached"] and self.train_state["test_goal_reached"]
        if goals and not settings.continue_after_target:
            return "both targets were reached (--continue_after_target trains on)"
        return None


def save(state: State, framework: Framework, folder: Path, settings: Settings) -> None:
    """Write a checkpoint of the state and of the generators of random numbers. UsageError if it cannot be."""
    contents = {
        **framework.state(state.model, state.optimizer_state, state.model_state),
        "train_state": state.train_state,
        "eval_results": tuple(state.eval_results),
        "global_step": state.global_step,
        "preemption_count": state.preemption_count,
        "batches_drawn": state.queue.drawn,
        "random_state": {"framework": framework.random_state(), **random_utils.global_state()},
        **settings.origin,
    }
    checkpoints.save(framework, folder, state.global_step, contents, settings.save_intermediate_checkpoints)


def resume(state: State, framework: Framework, folder: Path, settings: Settings) -> None:
    """Bring a fresh state, and the generators of random numbers, to where the last checkpoint was, if there is one.

    A run that ended before the updates asked for, and stays ended, is reported in a line.

    UsageError if there are checkpoints and the run cannot go on from any, or if the last has more updates than are
    asked for.
    """
    with framework.first():
        if framework.rank == 0:
            checkpoints.remove_partial(folder)
        saved = checkpoints.load_latest(framework, folder, settings.origin)
    if saved is None:
        return
    path, contents = saved
    last = settings.max_global_steps
    if last is not None and contents["global_step"] > last:
        raise UsageError(
            f"{path} is of update {contents['global_step']}, and training is to end at update {last}: ask for more by "
            "--max_global_steps, give another --experiment_name, or replace the run with --overwrite"
        )
    try:
        state.model, state.optimizer_state, state.model_state = framework.restore(
            contents, state.model, state.optimizer_state, state.model_state
        )
    except (KeyError, RuntimeError, ValueError) as error:
        line = " ".join(str(error).split())[:200]
        raise UsageError(f"{path} does not fit this submission and model: {line}") from None
    state.train_state = contents["train_state"]
    state.eval_results = [(step, result) for step, result in contents["eval_results"]]
    state.global_step = contents["global_step"]
    state.preemption_count = contents["preemption_count"] + 1
    if state.finished(settings):
        why = state.ended_early(settings)
        if why is not None and last is not None and not state.at_last_update(settings) and framework.rank == 0:
            said = f"{folder}: ended at update {state.global_step}, not at {last}, because {why}"
            print(said, file=sys.stderr, flush=True)
        return
    state.queue.skip(contents["batches_drawn"])
    framework.set_random_state(contents["random_state"]["framework"])
    random_utils.set_global_state(contents["random_state"])

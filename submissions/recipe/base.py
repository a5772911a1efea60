"""What of an AlgoPerf submission needs no framework."""

from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from weight_averaging.averages import Average

from . import schedules
from .averaging import BUFFERS, Averaging, always, buffers_of
from .batch_sizes import get_batch_size
from .hyperparameters import OF_SCHEDULE, check
from .optimizers import OptimizerSettings


class HasSettings(Protocol):
    """A base optimizer of either framework."""

    @property
    def settings(self) -> OptimizerSettings: ...

    def missing(self) -> str | None:
        """What to install first, in one line; None if nothing."""


@dataclass(frozen=True)
class BaseRecipe:
    """`optimizer`, `schedule`, and the average of the weights at evaluations (None: the raw weights).

    The methods are functions that AlgoPerf asks of a submission; a submission module re-exports them.

    Attributes:
        point: hyperparameters by name, of a self-tuning submission; the harness then gives none.
    """

    optimizer: HasSettings
    schedule: Callable[..., Any]
    averaging: Averaging | Average | None = None
    point: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.averages is not None and self.optimizer.settings.averages:
            name = self.optimizer.settings.name
            raise ValueError(
                f"{name} brings an average of its own to evaluations: leave averaging={self.averages.name} out"
            )

    @property
    def averages(self) -> Averaging | None:
        """`averaging`, also of a description that it may be."""
        return always(self.averaging) if isinstance(self.averaging, Average) else self.averaging

    def check_hyperparameters(self, hyperparameters: Any, step_hint: int) -> None:
        """A ValueError in one line if these hyperparameters cannot be trained with.

        Not part of AlgoPerf's API: miniperf calls it for all trials of a search space before the first one starts.
        """
        if missing := self.optimizer.missing():
            raise ValueError(missing)
        hyperparameters = self._own_if_any(hyperparameters)
        settings = self.optimizer.settings
        also_known = {*self.averages.hyperparameters, BUFFERS} if self.averages else set()
        optional = {**settings.optional, **OF_SCHEDULE.get(self.schedule.__name__, {})}
        check(hyperparameters, settings.required, optional, also_known)
        if self.averages is not None:
            self.averages.describe(hyperparameters, step_hint)
            buffers_of(hyperparameters)

    def learning_rate(self, step: int, step_hint: int, hyperparameters: Any) -> float:
        """Of the update after `step` others, as `recipe.schedules` has it."""
        factor: float = getattr(schedules, self.schedule.__name__)(step, step_hint, hyperparameters)
        return float(hyperparameters.learning_rate * factor)

    def data_selection(
        self,
        workload: Any,
        input_queue: Iterator[dict[str, Any]],
        optimizer_state: dict[str, Any],
        current_param_container: Any,
        model_state: Any,
        hyperparameters: Any,
        global_step: int,
        rng: Any,
    ) -> dict[str, Any]:
        """The next batch, as it comes."""
        del workload, optimizer_state, current_param_container, model_state, hyperparameters, global_step, rng
        return next(input_queue)

    def get_batch_size(self, workload_name: str) -> int:
        return get_batch_size(workload_name)

    def _own_if_any(self, hyperparameters: Any) -> Any:
        if self._own is None:
            return hyperparameters
        if hyperparameters:  # the harness gives None; its reference test, which knows no self-tuning, {}
            raise ValueError(
                "the submission has hyperparameters of its own: run with --tuning_ruleset=self and no search space"
            )
        return self._own

    @cached_property
    def _own(self) -> Any:
        return None if self.point is None else namedtuple("Hyperparameters", self.point)(**self.point)  # type: ignore[misc]

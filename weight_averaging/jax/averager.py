"""What averages over pytrees have in common: an interface of pure functions, and settings."""

import dataclasses
import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic

from jax import Array

from weight_averaging.averages import Average
from weight_averaging.averages.schedule import is_due
from weight_averaging.elsewhere import AnswersHabits
from weight_averaging.errors import UsageError
from weight_averaging.jax.checks import check_state
from weight_averaging.jax.trees import Tree

if TYPE_CHECKING:
    from typing_extensions import TypeVar  # typing's has a default from Python 3.13 on

    State = TypeVar("State", bound=Any, default=Any)
else:
    State = typing.TypeVar("State")


_AVERAGE = "average(state, params) returns the averaged parameters"
ELSEWHERE = {  # methods of optimizers, and of the averagers for PyTorch
    **dict.fromkeys(("averaged", "average_state_dict", "swap_in", "swap_out", "apply"), _AVERAGE),
    **dict.fromkeys(("step", "apply_updates"), "update(state, params, step) follows an optimizer update"),
    **dict.fromkeys(("state_dict", "load_state_dict"), "the state is a pytree of arrays, to be saved as it is"),
}


@dataclass(frozen=True)
class Averager(AnswersHabits, ABC, Generic[State]):
    """An average of weights along training, as pure functions over any pytree.

    `params` is what is averaged: parameters, or parameters and batch statistics. Floating-point leaves are averaged in
    float32 (complex ones in complex64), those of float64 and complex128 in their own type; all others are passed
    through. Structure, shapes and types of a state never change. The functions may be part of a larger `jax.jit`, which
    should donate the state: in donated memory an update with nothing due copies nothing.

    Averagers of the same average are equal, and what is compiled for one serves all. They pickle.

    Attributes:
        described: what it is, with an interval.
        check_finite: whether weights that are not finite are refused.
        settings: names and values of the hyperparameters.
    """

    described: Average
    check_finite: bool = True
    settings: tuple[tuple[str, Any], ...] = ()
    state: ClassVar[type]
    _elsewhere: ClassVar[Mapping[str, str]] = ELSEWHERE
    _called: ClassVar[str] = f"it is no model: {_AVERAGE}"

    def __post_init__(self) -> None:
        if not self.settings:
            object.__setattr__(self, "settings", settings_of(self.described))

    def __hash__(self) -> int:
        # Not of all fields: an average of one's own may have lists among them.
        return hash((type(self), type(self.described), self.described.interval, self.described.start))

    @property
    def interval(self) -> int:
        """Updates between snapshots."""
        assert self.described.interval is not None
        return self.described.interval

    @abstractmethod
    def init(self, params: Tree) -> State:
        """A state that holds no snapshot yet. Its memory is its own, sharded as the parameters are."""

    @abstractmethod
    def update(
        self, state: State, params: Tree, step: int | Array, *, learning_rate: Any = None, donate: bool = False
    ) -> State:
        """The state after an optimizer update.

        Args:
            step: int or int32[], the number of completed updates, 1, 2, ... One that is not larger than the last one is
                passed over. If it is smaller, and not 0, `refused` counts it where it is due. Outside jit an int spares
                a copy of the state where nothing is due, and so does an array that the device has computed already.
            learning_rate: of this update, a number or float[], also traced. Needed by `averages.FollowsRate`, unused by
                all others. A snapshot with a rate that is not finite, or < 0, is refused as one of such weights.
            donate: outside jit, whether the new state may take the memory of the one given, which is gone then.
        """

    @abstractmethod
    def average(self, state: State, params: Tree) -> Tree:
        """The average in the types of `params`, with what is not averaged as it is there.

        `params` themselves while the average is not ready. New memory throughout, and no gradient to `params`.
        """

    @abstractmethod
    def snapshot_steps(self, state: State) -> list[int]:
        """The updates of the snapshots held, ascending; of a recursion that of the last one. Waits for the state."""

    def ready(self, state: State) -> Array:
        """Whether there is an average, bool[]."""
        enough: Array = state.count >= self.described.needed
        return enough

    def check(self, state: State, settings: Mapping[str, Any] | None = None) -> None:
        """Refuse a restored state that is not one of this averager. Waits for the state.

        Args:
            settings: `dict(averager.settings)` as it was saved beside the state.
        Raises:
            UsageError: in one line, where a setting differs or a snapshot is of no update at which one is due.
        """
        check_state(state, self.state)
        for name, own in self.settings if settings is not None else ():
            saved = settings.get(name)  # type: ignore[union-attr]
            if (tuple(saved) if isinstance(saved, list) else saved) != own:
                raise UsageError(
                    f"the state has {name}={saved!r}, and the averager {name}={own!r}: take an averager of the state's "
                    "settings, or begin with a new state by init(params)"
                    + ("" if self.described.held else ", or on purpose go_on(state, settings)")
                )
        if settings is not None:
            return  # what went on with new ones may have its last snapshot of an update that is none of theirs
        wrong = [step for step in self.snapshot_steps(state) if not is_due(step, self.interval, self.described.start)]
        if wrong:
            raise UsageError(
                f"the state has the snapshot of update {wrong[0]}, and the averager interval={self.interval} and "
                f"start={self.described.start}: take the state's, or begin with a new state by init(params)"
            )

    def go_on(self, state: Any, settings: Mapping[str, Any]) -> State:
        """The state that goes on from one of another recursion, or of other settings, as `settings="new"` in PyTorch.

        The average stays. One that grows keeps its share of the updates: a snapshot counts for those of its interval.
        `FollowsRate` warns if it has no top rate and the state knows none. To be called
        outside jit; what stays, both states have in common.

        Args:
            state: of an exponential or growing average, compensated or not.
            settings: `dict(averager.settings)` of the averager that the state is of.
        Raises:
            UsageError: one of the two averages is a window, which begins anew with other settings.
        """
        raise UsageError(f"{self.described} goes on from no other average: begin with a new state by init(params)")


def settings_of(average: Average) -> tuple[tuple[str, Any], ...]:
    """Names and values of what a state depends on."""
    fields = dataclasses.fields(average)
    own = {field.name: getattr(average, field.name) for field in fields}
    return (("averager", type(average).__name__), *own.items())

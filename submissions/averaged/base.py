"""The functions of a submission around those of another one, whatever framework it is in."""

import inspect
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

from absl import logging

from weight_averaging.averages import Average

from ..recipe.averaging import Averaging, always, buffers_of

OURS = "averaging_"  # what hyperparameters of averages begin with
REMEDY = "average on with on_top=True (scripts.average_submission --on_top), or not"


class Around(Protocol):
    """What is done with the state and the weights of one framework (pytorch.py, jax.py of this folder)."""

    def init(self, state: Any, model_params: Any, model_state: Any) -> Any:
        """The base's new state, with that of the average in it."""

    def opened(self, state: Any, params: Any, model_state: Any) -> tuple[Any, Any, Any]:
        """With the raw weights in their place: before the base sees them."""

    def theirs(self, state: Any) -> Any:
        """The base's own state."""

    def closed(self, state: Any, theirs: Any, params: Any, model_state: Any, step: int | None) -> tuple[Any, Any, Any]:
        """With what the base gave back as its own state, and a snapshot of update `step` if one is due."""

    def averaged(self, state: Any, params: Any, model_state: Any) -> tuple[Any, Any, Any]:
        """With the average in the place of the raw weights, if there is one."""

    def fingerprint(self, params: Any) -> Sequence[float]:
        """A few numbers of every weight, to see whether somebody has changed them."""

    def watched(self, workload: Any, params: Any, train: Callable[[], Any]) -> tuple[Any, bool]:
        """What `train` returns, and whether it began at other weights than `params` has; False if that is unknown."""


@dataclass(frozen=True)
class Averaged:
    """What the harness asks of a submission, and what is averaged, for whoever checks it.

    Attributes:
        averages: how the average follows from the hyperparameters.
        point: hyperparameters of the average; None: they stand in the search space.
        calls_per_update: calls of `update_params` after which the base has trained once.
        on_top: whether evaluations see what the base brings to them until the average is ready.
    """

    init_optimizer_state: Callable[..., Any]
    update_params: Callable[..., Any]
    prepare_for_eval: Callable[..., Any]
    data_selection: Callable[..., Any]
    get_batch_size: Callable[[str], int]
    averages: Averaging
    point: Mapping[str, Any] | None
    calls_per_update: int
    on_top: bool


def averaged(
    around_of: Callable[[Averaging, Any, int], Around],
    base: ModuleType,
    averaging: Averaging | Average,
    point: Mapping[str, Any] | None = None,
    on_top: bool = False,
    calls_per_update: int = 1,
) -> Averaged:
    """A submission that trains as `base` does, bit for bit, and is evaluated at the average of its weights.

    Args:
        around_of: makes what is done in one framework, of the average, its hyperparameters and the `step_hint`; given
            already by `averaged` of pytorch.py and jax.py here.
        base: a module that exports what AlgoPerf asks of a submission. It is left as it is.
        averaging: `lawa`, `ema`, or any description (`weight_averaging.averages`).
        point: hyperparameters of the average by name; None: they stand in the search space beside the base's.
        on_top: average on, although the base brings an average of its own to evaluations. Averaged are the weights
            that it leaves after its updates.
        calls_per_update: calls of `update_params` after which the base has trained once, for one that accumulates
            gradients. Intervals count updates.
    Raises:
        ValueError: `base` lacks a function.
    """
    needed = ("init_optimizer_state", "update_params", "data_selection", "get_batch_size")
    if missing := [name for name in needed if not callable(getattr(base, name, None))]:
        raise ValueError(f"{base.__name__} is no submission: it lacks {', '.join(missing)}")
    kind = always(averaging) if isinstance(averaging, Average) else averaging
    around: list[Around] = []  # of the trial that runs
    hyperparameters_of_base: list[Any] = []  # likewise, made once: to JAX a new type would be a new structure
    prepare = getattr(base, "prepare_for_eval", None)
    evaluated = False  # since the latest update

    def init_optimizer_state(workload: Any, model_params: Any, model_state: Any, hyperparameters: Any, rng: Any) -> Any:
        ours, theirs = _divided(kind, point, hyperparameters)
        hyperparameters_of_base[:] = [theirs]
        if buffers_of(ours) == "recompute":
            raise ValueError("averaging_buffers='recompute' needs batches, which a base keeps to itself: use 'average'")
        if on_top:
            logging.info("averaged are the weights that %s leaves after its updates, on top of its own", base.__name__)
        state = base.init_optimizer_state(workload, model_params, model_state, theirs, rng)
        around[:] = [around_of(kind, ours, workload.step_hint)]
        return around[0].init(state, model_params, model_state)

    def update_params(**given: Any) -> Any:
        nonlocal evaluated
        here = around[0]
        state, given = opened(given)
        model_state, calls = given["model_state"], given["global_step"] + 1
        # Not at every update: to look waits for the device. A base may begin to average late, hence powers of two.
        if not on_top and (evaluated or calls & (calls - 1) == 0):
            (theirs, params, new_state), elsewhere = here.watched(
                given["workload"], given["current_param_container"], lambda: base.update_params(**given)
            )
            if elsewhere:
                raise ValueError(
                    f"{base.__name__} begins updates at other weights than it leaves, as one does that brings an "
                    f"average of its own to evaluations: {REMEDY}"
                )
        else:
            theirs, params, new_state = base.update_params(**given)
        evaluated = False
        if new_state is None:  # some workloads hand back None for the {} that they began with, which no resume fits
            new_state = model_state
        step = calls // calls_per_update if calls % calls_per_update == 0 else None
        return here.closed(state, theirs, params, new_state, step)

    def prepare_for_eval(**given: Any) -> Any:
        nonlocal evaluated
        evaluated = True
        here, state = around[0], given["optimizer_state"]
        params, model_state = given["current_param_container"], given["model_state"]
        if prepare is not None:
            state, given = opened(given)
            before = None if on_top else here.fingerprint(given["current_param_container"])
            theirs, params, model_state = prepare(**given)
            if before is not None and not same(before, here.fingerprint(params)):
                raise ValueError(f"{base.__name__} brings other weights to evaluations itself: {REMEDY}")
            state, params, model_state = here.closed(state, theirs, params, model_state, None)
        return here.averaged(state, params, model_state)

    def opened(given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Our state with the raw weights in their place, and the arguments as the base would have them alone."""
        state, params, model_state = around[0].opened(
            given["optimizer_state"], given["current_param_container"], given["model_state"]
        )
        own = {"optimizer_state": around[0].theirs(state), "current_param_container": params}
        return state, {**given, **own, "model_state": model_state, "hyperparameters": hyperparameters_of_base[0]}

    def data_selection(
        workload: Any,
        input_queue: Any,
        optimizer_state: Any,
        current_param_container: Any,
        model_state: Any,
        hyperparameters: Any,
        global_step: int,
        rng: Any,
    ) -> Any:
        del hyperparameters
        theirs, own = around[0].theirs(optimizer_state), hyperparameters_of_base[0]
        return base.data_selection(
            workload, input_queue, theirs, current_param_container, model_state, own, global_step, rng
        )

    # The harness looks at the signature: it hands `train_state` to those who name it.
    update_params.__signature__ = inspect.signature(base.update_params)  # type: ignore[attr-defined]
    return Averaged(
        init_optimizer_state, update_params, prepare_for_eval, data_selection, base.get_batch_size, kind, point,
        calls_per_update, on_top,
    )  # fmt: skip


def same(before: Sequence[float], after: Sequence[float]) -> bool:
    """Whether all numbers are alike; a NaN, as of a run that diverged, is like another."""
    return all(one == other or (one != one and other != other) for one, other in zip(before, after, strict=True))


def _divided(kind: Averaging, point: Mapping[str, Any] | None, hyperparameters: Any) -> tuple[Any, Any]:
    """The hyperparameters of the average, and those of the base.

    Raises:
        ValueError: there are none for the average.
    """
    if point is not None:
        return namedtuple("Averaging", point)(**point), hyperparameters  # type: ignore[misc]
    if hyperparameters is None:
        if kind.hyperparameters:
            raise ValueError("a self-tuning submission needs the hyperparameters of its average: give point=")
        return None, None
    values = hyperparameters._asdict()
    ours = {name: value for name, value in values.items() if name.startswith(OURS)}
    theirs = {name: value for name, value in values.items() if name not in ours}
    return (
        namedtuple("Averaging", ours)(**ours),  # type: ignore[misc]
        namedtuple("Hyperparameters", theirs)(**theirs),  # type: ignore[misc]
    )

"""What pytorch.py does of a submission, for one in JAX: the averages wait beside it, and are in no checkpoint."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from inspect import signature
from types import ModuleType
from typing import Any

import jax

from miniperf.tracking.base import Tracked
from weight_averaging.averages import Average
from weight_averaging.jax import Several, averaging_for


class TrackedSubmission(Tracked):
    """One in JAX: its averages wait beside it, and are in no checkpoint."""

    def __init__(self, submission: ModuleType, averages: Mapping[str, Average]) -> None:
        super().__init__(submission, averages)
        self.update_params = self._update
        # The runner looks for `train_state` in it.
        self._update.__func__.__signature__ = signature(submission.update_params)  # type: ignore[attr-defined]

    def init_optimizer_state(self, workload: Any, params: Any, model_state: Any, *arguments: Any) -> Any:
        weights = _weights(params, model_state)
        self._several = Several(tuple((name, averaging_for(weights, one)) for name, one in self._described.items()))
        self._states = self._several.init(weights)
        return self._submission.init_optimizer_state(workload, params, model_state, *arguments)

    def _update(self, *, global_step: int, **arguments: Any) -> Any:
        result = self._submission.update_params(global_step=global_step, **arguments)
        jax.block_until_ready(result[1])
        began = time.perf_counter()
        weights = _weights(result[1], result[2])
        self._states = self._several.update(self._states, weights, global_step + 1, donate=True)
        jax.block_until_ready(self._states)
        self.seconds.append(time.perf_counter() - began)
        return result

    @contextlib.contextmanager
    def averaged(self, name: str, params: Any, model_state: Any) -> Iterator[tuple[Any, Any] | None]:
        """The average of the parameters and of the model's state, in trees like these; None if there is none yet."""
        averager, state = dict(self._several.averagers)[name], self._states[name]
        if not bool(averager.ready(state)):
            yield None
            return
        weights = averager.average(state, _weights(params, model_state))
        yield weights["params"], jax.tree.unflatten(jax.tree.structure(model_state), weights["state"])


def _weights(params: Any, model_state: Any) -> dict[str, Any]:
    """As one tree; of the state the leaves alone, whose container may change."""
    return {"params": params, "state": jax.tree.leaves(model_state)}

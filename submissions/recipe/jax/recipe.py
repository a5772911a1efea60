"""The functions of an AlgoPerf submission in JAX: an optimizer, a schedule and, maybe, an averager."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from absl import logging

from ..base import BaseRecipe
from .averagers import OptimizersAverage, WeightsAverager, averages_statistics
from .optimizers import BaseOptimizer, ScheduleFree
from .resuming import shapes, unstacked
from .training import State, compiled, compiled_step


@dataclass
class Trial:
    """What a tuning trial needs beside its state. The harness hands it along with that, and does not save it.

    Attributes:
        step: of `compiled_step`.
        shapes: of state, parameters and model state; None once they have been compared.
    """

    step: Callable[..., Any]
    averager: WeightsAverager | OptimizersAverage | None
    shapes: dict[str, tuple[int, ...]] | None


@dataclass(frozen=True)
class Recipe(BaseRecipe):
    """The recipe in pure functions over pytrees, which are on all devices; batches are split over these."""

    optimizer: BaseOptimizer
    schedule: Callable[[int, int, Any], float]

    def check_hyperparameters(self, hyperparameters: Any, step_hint: int) -> None:
        super().check_hyperparameters(hyperparameters, step_hint)
        if self.averages is not None:
            averages_statistics(self._own_if_any(hyperparameters))

    def init_optimizer_state(
        self, workload: Any, model_params: Any, model_state: Any, hyperparameters: Any, rng: Any
    ) -> tuple[State, Trial]:
        """The state, a pytree that the harness saves and restores, and what goes along with it."""
        del rng
        if callable(getattr(model_params, "named_parameters", None)):
            raise ValueError("the submission is in JAX, the model in PyTorch: run it with --framework=jax")
        self.check_hyperparameters(hyperparameters, workload.step_hint)
        hyperparameters = self._own_if_any(hyperparameters)
        optimizer = self.optimizer.build(hyperparameters, workload.step_hint)
        averager: WeightsAverager | OptimizersAverage | None = None
        averaging, raw = (), ()
        if self.averages is not None:
            averager = WeightsAverager(self.averages, hyperparameters, workload.step_hint, model_params, model_state)
        elif isinstance(self.optimizer, ScheduleFree):
            averager = OptimizersAverage(self.optimizer, model_params, model_state)
        if averager is not None:
            averaging, raw = averager.init(model_params, model_state)
        state = State(compiled(optimizer.init)(model_params), averaging, raw)
        own_rate = self.optimizer.settings.averages
        step = compiled_step(workload, optimizer, hyperparameters, own_rate)
        return state, Trial(step, averager, shapes((state, model_params, model_state)))

    def update_params(
        self,
        workload: Any,
        current_param_container: Any,
        current_params_types: Any,
        model_state: Any,
        hyperparameters: Any,
        batch: dict[str, Any],
        loss_type: Any,
        optimizer_state: tuple[State, Trial],
        eval_results: list[tuple[int, Any]],
        global_step: int,
        rng: Any,
        train_state: Mapping[str, Any] | None = None,
    ) -> tuple[tuple[State, Trial], Any, Any]:
        """One update of the raw weights. `global_step` counts the updates before this one.

        What it is given of state, parameters and model state is gone afterwards: the new ones take their memory.
        `train_state` is the harness's book-keeping. Its runner passes it to those who name it, its tests to everyone.
        """
        del current_params_types, loss_type, eval_results, train_state
        hyperparameters = self._own_if_any(hyperparameters)
        (state, trial), params = optimizer_state, current_param_container
        averager = trial.averager
        if trial.shapes is not None:
            state, params, model_state = unstacked((state, params, model_state), trial.shapes)
            state, trial.shapes = averager.restored(state) if averager is not None else state, None
        if averager is not None:
            state, params, model_state = averager.swap_out(state, params, model_state)

        learning_rate = self._learning_rate(workload, hyperparameters, global_step)
        optimizer, params, model_state, loss, grad_norm = trial.step(
            state.optimizer, params, model_state, batch, rng, learning_rate
        )
        state = state._replace(optimizer=optimizer)
        if averager is not None:
            state = averager.update(state, params, model_state, global_step + 1, learning_rate)

        if global_step <= 100 or global_step % 500 == 0:
            rate = self._learning_rate(workload, hyperparameters, global_step + 1)
            _log(workload, loss.item(), grad_norm.item(), rate, averager, state, global_step)
        return (state, trial), params, model_state

    def prepare_for_eval(
        self,
        workload: Any,
        current_param_container: Any,
        current_params_types: Any,
        model_state: Any,
        hyperparameters: Any,
        loss_type: Any,
        optimizer_state: tuple[State, Trial],
        eval_results: list[tuple[int, Any]],
        global_step: int,
        rng: Any,
    ) -> tuple[tuple[State, Trial], Any, Any]:
        """The average, if there is one yet, in the place of the raw weights, which the state keeps."""
        del workload, current_params_types, hyperparameters, loss_type, eval_results, global_step, rng
        (state, trial), params = optimizer_state, current_param_container
        if trial.averager is not None:
            state, params, model_state = trial.averager.swap_in(state, params, model_state)
        # Or an evaluation, which is not timed, would begin with what is left of training.
        jax.block_until_ready((state, params, model_state))
        return (state, trial), params, model_state

    def _learning_rate(self, workload: Any, hyperparameters: Any, step: int) -> float:
        return hyperparameters.learning_rate * self.schedule(step, workload.step_hint, hyperparameters)


def _log(
    workload: Any,
    loss: float,
    grad_norm: float,
    learning_rate: float,
    averager: WeightsAverager | OptimizersAverage | None,
    state: State,
    global_step: int,
) -> None:
    """At the steps where the official PyTorch baseline logs; the learning rate is that of the next update, as there."""
    if workload.metrics_logger is not None:
        metrics = {"loss": loss, "grad_norm": grad_norm, "learning_rate": learning_rate}
        if averager is not None:
            steps = averager.snapshot_steps(state)
            metrics |= {"averaging/snapshots": len(steps), "averaging/last_snapshot": max(steps, default=0)}
            metrics["averaging/ready"] = float(averager.ready(state))  # an evaluation would see the average
        workload.metrics_logger.append_scalar_metrics(metrics, global_step)
    logging.info("%d) loss = %0.3f, grad_norm = %0.3f", global_step, loss, grad_norm)

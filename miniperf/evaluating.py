"""Evaluations along a run: when one is due, and on whose clock each part of it is."""

import math
import time
from collections.abc import Callable
from typing import Any

from miniperf.frameworks import Framework
from miniperf.resuming import State
from miniperf.settings import Settings


def is_due(state: State, now: float, workload: Any, settings: Settings) -> bool:
    """After the very first update, then by time (officially) or by the number of updates, and at the end."""
    if settings.eval_every_n_steps is None:
        due = now - state.train_state["last_eval_time"] >= workload.eval_period_time_sec
    else:
        due = state.global_step == 1 or state.global_step % settings.eval_every_n_steps == 0
    return due or state.train_state["training_complete"] or state.at_last_update(settings)


def allowed_seconds(workload: Any, settings: Settings) -> float:
    """The time budget of training, which has no end where evaluations are counted in updates."""
    if settings.eval_every_n_steps is not None:
        return math.inf
    return workload.max_allowed_runtime_sec * (1.5 if settings.tuning_ruleset == "self" else 1.0)


def prepare(
    state: State, framework: Framework, prepare_for_eval: Callable[..., tuple[Any, Any, Any]], **arguments: Any
) -> None:
    """Let the submission make ready what is evaluated, on its own clock."""
    begin = time.time()
    state.optimizer_state, state.model, state.model_state = prepare_for_eval(
        **arguments,
        current_param_container=state.model,
        model_state=state.model_state,
        optimizer_state=state.optimizer_state,
        global_step=state.global_step,
    )
    framework.wait(state.model)
    state.train_state["accumulated_submission_time"] += time.time() - begin


def evaluate(
    state: State, framework: Framework, workload: Any, settings: Settings, rng: Any, run_begin: float
) -> dict[str, float]:
    """Evaluate all splits, on a clock of its own, and note in the state the result and the goals that it reaches.

    Args:
        run_begin: when this process began to train.

    Returns:
        The metrics and the clocks.
    """
    train_state, batch_size = state.train_state, workload.eval_batch_size
    begin = time.time()
    result = framework.agree(
        workload.eval_model(batch_size, state.model, state.model_state, rng, settings.data_dir, None, state.global_step)
    )
    train_state["validation_goal_reached"] |= workload.has_reached_validation_target(result)
    train_state["test_goal_reached"] |= workload.has_reached_test_target(result)
    end = time.time()
    train_state["last_eval_time"] = end
    train_state["accumulated_eval_time"] += end - begin
    result["score"] = train_state["accumulated_submission_time"]
    result["total_duration"] = end - run_begin
    for name in ("submission", "eval", "logging"):
        result[f"accumulated_{name}_time"] = train_state[f"accumulated_{name}_time"]
    state.eval_results.append((state.global_step, result))
    return result

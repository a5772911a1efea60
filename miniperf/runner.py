"""The training loop of the official harness, for one trial: its order of calls, clock, evaluations and checkpoints.

Differences, all on purpose: evaluations can be counted in updates (`eval_every_n_steps`), and then no time budget ends
the run, so that it is the same on every machine; training can go on past the targets (`continue_after_target`);
checkpoints are written atomically, checked when read, and hold the random state, so that a resumed run ends bit for bit
as an unbroken one; and an error inside an evaluation ends the run instead of being retried.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from miniperf import checkpoints, frameworks, random_utils, spec
from miniperf.logs import MetricsLogger, NoLogger, meta_data, write_json
from miniperf.progress import Progress
from weight_averaging.errors import UsageError


@dataclass(frozen=True)
class Settings:
    """What a run needs to know beyond the submission, the workload and the hyperparameters."""

    workload_name: str
    submission_path: str
    rng_seed: int
    batch_size: int
    framework: str = "pytorch"
    data_dir: str = ""
    max_global_steps: int | None = None
    eval_every_n_steps: int | None = None  # None: by time, as officially
    continue_after_target: bool = False
    save_checkpoints: bool = True
    save_intermediate_checkpoints: bool = True
    tuning_ruleset: str = "external"
    save_snapshots_every_n_steps: int | None = None
    checkpoint_every_n_steps: int | None = None  # None: at every evaluation, as officially
    torch_compile: bool = False


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


def train_once(
    workload: Any,
    submission: ModuleType,
    hyperparameters: Any,
    settings: Settings,
    folder: Path,
    flags: dict[str, Any],
) -> list[tuple[int, dict[str, float]]]:
    """Train one trial in `folder`, from its last checkpoint if there is one.

    Returns:
        (step, metrics) of every evaluation.
    """
    framework = frameworks.load(settings.framework)
    rng, _ = random_utils.split(random_utils.key_from_seed(settings.rng_seed))
    data_rng, opt_init_rng, model_init_rng, rng = random_utils.split(rng, 4)

    # Whatever draws from the global generators depends on the seed too.
    framework.seed(settings.rng_seed)
    random_utils.seed_globals(settings.rng_seed)
    queue = CountedQueue(workload._build_input_queue(data_rng, "train", settings.data_dir, settings.batch_size))
    model, model_state = workload.init_model_fn(framework.key(model_init_rng))
    if settings.torch_compile:
        model = framework.compiled(model)
    optimizer_state = submission.init_optimizer_state(
        workload, model, model_state, hyperparameters, framework.key(opt_init_rng)
    )
    train_state: dict[str, Any] = {
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
    eval_results: list[tuple[int, dict[str, float]]] = []
    global_step = preemption_count = 0

    origin: dict[str, Any] = {"workload": settings.workload_name, "submission_path": settings.submission_path}
    origin |= {"rng_seed": settings.rng_seed}
    with framework.first():
        saved = checkpoints.load_latest(framework, folder, origin)
    if saved is not None:
        path, contents = saved
        try:
            model, optimizer_state, model_state = framework.restore(contents, model, optimizer_state, model_state)
        except (KeyError, RuntimeError, ValueError) as error:
            line = " ".join(str(error).split())[:200]
            raise UsageError(f"{path} does not fit this submission and model: {line}") from None
        train_state = contents["train_state"]
        eval_results = [(step, result) for step, result in contents["eval_results"]]
        global_step = contents["global_step"]
        preemption_count = contents["preemption_count"] + 1
        if _finished(train_state, settings):
            return eval_results
        queue.skip(contents["batches_drawn"])
        framework.set_random_state(contents["random_state"]["framework"])
        random_utils.set_global_state(contents["random_state"])

    writes = framework.rank == 0
    if writes:
        about_run = meta_data(workload, settings.rng_seed, framework.versions())
        write_json(folder / f"meta_data_{preemption_count}.json", about_run)
        write_json(folder / f"flags_{preemption_count}.json", flags)
    logger = MetricsLogger(folder, global_step) if writes else NoLogger()
    workload.attach_metrics_logger(logger if writes else None)  # as officially
    prepare_for_eval = getattr(submission, "prepare_for_eval", None)
    needs_train_state = "train_state" in signature(submission.update_params).parameters
    allowed_seconds = workload.max_allowed_runtime_sec * (1.5 if settings.tuning_ruleset == "self" else 1.0)
    if settings.eval_every_n_steps is not None:
        allowed_seconds = math.inf

    about: dict[str, Any] = {"workload": settings.workload_name, "submission": settings.submission_path}
    about |= {"rng_seed": settings.rng_seed, "hyperparameters": hyperparameters and hyperparameters._asdict()}
    snapshots = _snapshot_writer(framework, folder, model, settings, about) if writes else None

    def save() -> None:
        if not writes:
            return
        if snapshots is not None:
            snapshots.flush()  # those that a run resumed from here does not take again
        if not settings.save_checkpoints:
            return
        contents = {
            **framework.state(model, optimizer_state, model_state),
            "train_state": train_state,
            "eval_results": tuple(eval_results),
            "global_step": global_step,
            "preemption_count": preemption_count,
            "batches_drawn": queue.drawn,
            "random_state": {"framework": framework.random_state(), **random_utils.global_state()},
            **origin,
        }
        checkpoints.save(framework, folder, global_step, contents, settings.save_intermediate_checkpoints)

    start_time = time.time()
    train_state["last_step_end_time"] = start_time
    with Progress(
        workload, settings.workload_name, settings.max_global_steps, global_step, eval_results, writes
    ) as progress:
        while train_state["is_time_remaining"] and not _finished(train_state, settings):
            keys = random_utils.split(random_utils.fold_in(rng, global_step), 4)
            data_select_rng, update_rng, prepare_rng, eval_rng = map(framework.key, keys)
            batch = submission.data_selection(
                workload, queue, optimizer_state, model, model_state, hyperparameters, global_step, data_select_rng
            )
            common = {
                "workload": workload,
                "current_params_types": workload.model_params_types,
                "hyperparameters": hyperparameters,
                "loss_type": workload.loss_type,
                "eval_results": eval_results,
            }
            try:
                optimizer_state, model, model_state = submission.update_params(
                    **common,
                    current_param_container=model,
                    model_state=model_state,
                    batch=batch,
                    optimizer_state=optimizer_state,
                    global_step=global_step,
                    rng=update_rng,
                    **({"train_state": MappingProxyType(train_state)} if needs_train_state else {}),
                )
            except spec.TrainingCompleteError:
                train_state["training_complete"] = True
            global_step += 1
            if global_step == settings.max_global_steps:
                train_state["training_complete"] = True
            framework.wait(model)
            step_end_time = time.time()
            train_state["accumulated_submission_time"] += step_end_time - train_state["last_step_end_time"]
            progress.after_update(global_step, logger.latest, framework.learning_rate(optimizer_state))
            if snapshots is not None:
                snapshots.update(global_step, model)  # raw weights: an update leaves them in the model

            due = _evaluation_due(global_step, step_end_time, train_state, workload, settings)
            if framework.agree(due) if settings.eval_every_n_steps is None else due:
                if prepare_for_eval is not None:
                    del batch
                    prepare_start_time = time.time()
                    optimizer_state, model, model_state = prepare_for_eval(
                        **common,
                        current_param_container=model,
                        model_state=model_state,
                        optimizer_state=optimizer_state,
                        global_step=global_step,
                        rng=prepare_rng,
                    )
                    framework.wait(model)
                    train_state["accumulated_submission_time"] += time.time() - prepare_start_time
                in_time = train_state["accumulated_submission_time"] < allowed_seconds
                train_state["is_time_remaining"] = framework.agree(in_time)
                if train_state["is_time_remaining"]:
                    eval_start_time = time.time()
                    result = framework.agree(
                        workload.eval_model(
                            workload.eval_batch_size, model, model_state, eval_rng, settings.data_dir, None, global_step
                        )
                    )
                    train_state["validation_goal_reached"] |= workload.has_reached_validation_target(result)
                    train_state["test_goal_reached"] |= workload.has_reached_test_target(result)
                    eval_end_time = time.time()
                    train_state["last_eval_time"] = eval_end_time
                    train_state["accumulated_eval_time"] += eval_end_time - eval_start_time
                    result["score"] = train_state["accumulated_submission_time"]
                    result["total_duration"] = eval_end_time - start_time
                    for name in ("submission", "eval", "logging"):
                        result[f"accumulated_{name}_time"] = train_state[f"accumulated_{name}_time"]
                    eval_results.append((global_step, result))
                    logger.append_scalar_metrics(result, global_step, preemption_count, is_eval=True)
                    if global_step % (settings.checkpoint_every_n_steps or 1) == 0:
                        save()
                    train_state["accumulated_logging_time"] += time.time() - eval_end_time
                    progress.after_evaluation(global_step, result)
            train_state["last_step_end_time"] = time.time()

    logger.append_scalar_metrics(
        {"score": train_state["accumulated_submission_time"]}, global_step, preemption_count=preemption_count
    )
    logger.finish()
    save()
    if snapshots is not None:
        snapshots.close()
    return eval_results


def _evaluation_due(step: int, now: float, train_state: dict[str, Any], workload: Any, settings: Settings) -> bool:
    """After the very first update, then by time (officially) or by the number of updates, and at the end."""
    if settings.eval_every_n_steps is None:
        due = now - train_state["last_eval_time"] >= workload.eval_period_time_sec
    else:
        due = step == 1 or step % settings.eval_every_n_steps == 0
    return due or train_state["training_complete"]


def _finished(train_state: dict[str, Any], settings: Settings) -> bool:
    goals = train_state["validation_goal_reached"] and train_state["test_goal_reached"]
    return (
        train_state["training_complete"]
        or not train_state["is_time_remaining"]
        or (goals and not settings.continue_after_target)
    )


def _snapshot_writer(
    framework: frameworks.Framework, folder: Path, model: Any, settings: Settings, about: dict[str, Any]
) -> Any:
    """A writer of snapshots for averaging afterwards, into `snapshots/`, if they are asked for; tells their size."""
    interval, steps = settings.save_snapshots_every_n_steps, settings.max_global_steps
    if interval is None:
        return None
    writer = framework.snapshot_writer(folder / "snapshots", interval, about)
    use = writer.disk_use(model, steps or interval) / 1e6
    print(f"{writer.folder}: {use:.1f} MB {'in all' if steps else 'each'}, every {interval} updates", flush=True)
    return writer

"""The training loop of the official harness, for one trial: its order of calls, clock, evaluations and checkpoints.

What an evaluation is made of: evaluating.py. What goes into a checkpoint, and how a run resumes from it: resuming.py.

The differences are all on purpose. Evaluations can be counted in updates (`eval_every_n_steps`). Then no time budget
ends the run, so that it is the same on every machine. Training can continue past the targets (`continue_after_target`).
Checkpoints are written atomically, checked when read, and hold the random state. So a resumed run ends bit for bit as
an unbroken one. An error inside an evaluation ends the run instead of being retried.
"""

import time
from inspect import signature
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from miniperf import evaluating, frameworks, random_utils, resuming, spec
from miniperf.logs import MetricsLogger, NoLogger, close_table, meta_data, write_json
from miniperf.progress import Progress
from miniperf.resuming import CountedQueue, State
from miniperf.settings import Settings


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
    state, rng = _fresh(framework, workload, submission, hyperparameters, settings)
    resuming.resume(state, framework, folder, settings)
    writes = framework.rank == 0
    if state.finished(settings):
        if writes:
            spent = state.train_state["accumulated_submission_time"]
            close_table(folder, state.global_step, state.preemption_count, spent)
        return state.eval_results

    if writes:
        about_run = meta_data(workload, settings.rng_seed, framework.versions())
        write_json(folder / f"meta_data_{state.preemption_count}.json", about_run)
        write_json(folder / f"flags_{state.preemption_count}.json", flags)
    logger = MetricsLogger(folder, state.global_step) if writes else NoLogger()
    workload.attach_metrics_logger(logger if writes else None)  # as officially
    prepare_for_eval = getattr(submission, "prepare_for_eval", None)
    needs_train_state = "train_state" in signature(submission.update_params).parameters
    allowed_seconds = evaluating.allowed_seconds(workload, settings)
    snapshots = _snapshot_writer(framework, folder, state.model, settings, hyperparameters) if writes else None

    def save() -> None:
        if not writes:
            return
        if snapshots is not None:
            snapshots.flush()  # those that a run resumed from here does not take again
        if settings.save_checkpoints:
            resuming.save(state, framework, folder, settings)

    train_state, eval_results = state.train_state, state.eval_results  # the same objects until the end
    start_time = time.time()
    train_state["last_step_end_time"] = start_time
    with Progress(
        workload, settings.workload_name, settings.max_global_steps, state.global_step, eval_results, writes
    ) as progress:
        while not state.finished(settings):
            keys = random_utils.split(random_utils.fold_in(rng, state.global_step), 4)
            data_select_rng, update_rng, prepare_rng, eval_rng = map(framework.key, keys)
            batch = submission.data_selection(
                workload, state.queue, state.optimizer_state, state.model, state.model_state, hyperparameters,
                state.global_step, data_select_rng,
            )  # fmt: skip
            common = {
                "workload": workload,
                "current_params_types": workload.model_params_types,
                "hyperparameters": hyperparameters,
                "loss_type": workload.loss_type,
                "eval_results": eval_results,
            }
            try:
                state.optimizer_state, state.model, state.model_state = submission.update_params(
                    **common,
                    current_param_container=state.model,
                    model_state=state.model_state,
                    batch=batch,
                    optimizer_state=state.optimizer_state,
                    global_step=state.global_step,
                    rng=update_rng,
                    **({"train_state": MappingProxyType(train_state)} if needs_train_state else {}),
                )
            except spec.TrainingCompleteError:
                train_state["training_complete"] = True
            state.global_step += 1
            framework.wait(state.model)
            step_end_time = time.time()
            train_state["accumulated_submission_time"] += step_end_time - train_state["last_step_end_time"]
            progress.after_update(state.global_step, logger.latest, framework.learning_rate(state.optimizer_state))
            if snapshots is not None:
                snapshots.update(state.global_step, state.model)  # raw weights: an update leaves them in the model

            due = evaluating.is_due(state, step_end_time, workload, settings)
            if framework.agree(due) if settings.eval_every_n_steps is None else due:
                if prepare_for_eval is not None:
                    del batch
                    evaluating.prepare(state, framework, prepare_for_eval, **common, rng=prepare_rng)
                in_time = train_state["accumulated_submission_time"] < allowed_seconds
                train_state["is_time_remaining"] = framework.agree(in_time)
                if train_state["is_time_remaining"]:
                    result = evaluating.evaluate(state, framework, workload, settings, eval_rng, start_time)
                    logger.append_scalar_metrics(result, state.global_step, state.preemption_count, is_eval=True)
                    if state.global_step % (settings.checkpoint_every_n_steps or 1) == 0:
                        save()
                    train_state["accumulated_logging_time"] += time.time() - train_state["last_eval_time"]
                    progress.after_evaluation(state.global_step, result)
            train_state["last_step_end_time"] = time.time()

    logger.append_scalar_metrics(
        {"score": train_state["accumulated_submission_time"]}, state.global_step, state.preemption_count
    )
    logger.finish()
    save()
    if snapshots is not None:
        snapshots.close()
    return eval_results


def _fresh(
    framework: frameworks.Framework, workload: Any, submission: ModuleType, hyperparameters: Any, settings: Settings
) -> tuple[State, Any]:
    """The state before the first update, and the key of all that is random from then on."""
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
    return State(model, optimizer_state, model_state, queue), rng


def _snapshot_writer(
    framework: frameworks.Framework, folder: Path, model: Any, settings: Settings, hyperparameters: Any
) -> Any:
    """A writer of snapshots for averaging afterwards, into `snapshots/`, if they are asked for; tells their size."""
    interval, steps = settings.save_snapshots_every_n_steps, settings.max_global_steps
    if interval is None:
        return None
    about: dict[str, Any] = {"workload": settings.workload_name, "submission": settings.submission_path}
    about |= {"rng_seed": settings.rng_seed, "hyperparameters": hyperparameters and hyperparameters._asdict()}
    writer = framework.snapshot_writer(folder / "snapshots", interval, about)
    use = writer.disk_use(model, steps or interval) / 1e6
    print(f"{writer.folder}: {use:.1f} MB {'in all' if steps else 'each'}, every {interval} updates", flush=True)
    return writer

"""Making one run of the plan, with its averages along; a run that was stopped goes on from its last checkpoint."""

import contextlib
import fcntl
import importlib
import os
import shutil
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launching.evidence import records
from launching.evidence.averages import averages
from launching.evidence.plan import SEARCH_EVALUATIONS, Run
from miniperf import frameworks, search, submission, workloads
from miniperf.logs import meta_data
from miniperf.runner import train_once
from miniperf.settings import Settings
from miniperf.tracking.pytorch import TrackedWorkload

CHECKPOINTS = 4  # in a run of a workload's own length; five times as many in a longer one


@contextlib.contextmanager
def claimed(run: Run, out: Path) -> Iterator[bool]:
    """Whether this process has the run to itself within the block; a process that ends gives up what it has."""
    path = run.path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield not run.finished(out)


def make(run: Run, out: Path) -> None:
    """Train, evaluate and write the two files of `records`. Nothing else of the run is left then."""
    began = time.time()
    variant, path = run.variant, run.path(out)
    framework = frameworks.load(variant.framework)
    framework.begin()
    workload: Any = workloads.make(run.workload, variant.framework)
    steps = variant.steps(run.workload)
    evaluations = min(SEARCH_EVALUATIONS, variant.evaluations) if run.search else variant.evaluations
    evaluate_every = max(1, steps // evaluations)
    file = f"{'' if variant.published else 'submissions/pytorch/'}{variant.submission}/submission.py"
    module = submission.load(file, variant.framework)
    hyperparameters = _published(run, module) if variant.published else _hyperparameters(run)
    schedule = None if variant.published else module.recipe.schedule.__name__
    settings_of = hyperparameters._asdict()
    every = {} if run.search else variant.every
    described = averages(steps, evaluate_every, schedule, settings_of)
    tracking: Any = importlib.import_module(f"miniperf.tracking.{variant.framework}")
    ours = tracking.TrackedSubmission(module, {name: described[name] for name in every})
    theirs = TrackedWorkload(workload, ours, steps, evaluate_every, every, variant.test_every)
    saves = CHECKPOINTS * (1 if variant.length <= 1 else 5)
    settings = Settings(
        workload_name=run.workload,
        submission_path=file,
        rng_seed=run.seed,
        batch_size=max(1, round(variant.batch * submission.batch_size(module, run.workload, workload))),
        max_global_steps=steps,
        eval_every_n_steps=evaluate_every,
        framework=variant.framework,
        tuning_ruleset="external" if variant.point or not variant.published else "self",
        # Some published ones have in their states what cannot be saved, and the averages in JAX are in none.
        save_checkpoints=not variant.published,
        save_intermediate_checkpoints=False,
        checkpoint_every_n_steps=evaluate_every * max(1, evaluations // saves),
    )
    path.mkdir(parents=True, exist_ok=True)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        point = None if settings.tuning_ruleset == "self" else hyperparameters
        results = train_once(theirs, ours, point, settings, path, {})
    meta = meta_data(theirs, run.seed, framework.versions())
    about = {
        "part": variant.part, "variant": variant.name, "submission": variant.submission, "workload": run.workload,
        "seed": run.seed, "learning_rate": run.rate, "rate_at_edge": run.at_edge, "length": variant.length,
        "batch_size": settings.batch_size, "steps": steps, "step_hint": workload.step_hint, "schedule": schedule,
        "hyperparameters": settings_of, "metric": workload.target_metric_name,
        "higher_is_better": workload.higher_is_better, "target_share": workload.target_share,
        "validation_target": workload.validation_target_value, "test_target": workload.test_target_value,
        "passes": round(steps * settings.batch_size / workload.num_train_examples, 3),
        "averages": {name: str(described[name]) for name in every},
        "intervals": {name: described[name].interval for name in every},
        "windows": {name: described[name].held for name in every},
        "submission_seconds": round(results[-1][1]["accumulated_submission_time"], 1),
        "averaging_share": _averaging_share(ours.seconds, results),
        "evaluation_seconds": round(results[-1][1]["accumulated_eval_time"], 1),
        "last_process_seconds": round(time.time() - began, 1),
        "software": meta["system_software_info"], "hardware": meta["system_hardware_info"],
    }  # fmt: skip
    records.write(path, results, workload.target_metric_name, about)
    shutil.rmtree(path)


def _averaging_share(spent: list[float], results: Any) -> float | None:
    """Seconds of all averages together over those of training alone, once the first tenth has compiled what it needs.

    None where too little is known: of a resumed run, say.
    """
    times = {step: values["accumulated_submission_time"] for step, values in results}
    last = max(times)
    begins = [step for step in times if last / 10 <= step < last]
    if not begins or len(spent) != last:
        return None
    averaging = sum(spent[begins[0] :])
    return round(averaging / (times[last] - times[begins[0]] - averaging), 4)


def _published(run: Run, module: Any) -> Any:
    """Of a published submission, with the run's learning rate; of a self-tuning one they are put into its module."""
    variant = run.variant
    if variant.point:
        (file,) = Path(variant.submission).glob("*search_space*.json")
        return search.load(file, None)[variant.point - 1]._replace(learning_rate=run.rate)
    if isinstance(module.HPARAMS, dict):
        module.HPARAMS = {**module.HPARAMS, "learning_rate": run.rate}
        return namedtuple("Hyperparameters", module.HPARAMS)(**module.HPARAMS)  # type: ignore[misc]  # as below
    module.HPARAMS = module.HPARAMS._replace(learning_rate=run.rate)
    return module.HPARAMS


def _hyperparameters(run: Run) -> Any:
    point = search.load(Path(run.variant.search_spaces, f"{run.variant.submission}.json"), None)[0]._asdict()
    values = {**point, **run.variant.hyperparameters, "learning_rate": run.rate}
    return namedtuple("Hyperparameters", values)(**values)  # type: ignore[misc]  # names known at run time only

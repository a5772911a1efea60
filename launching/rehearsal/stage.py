"""The harness's own runner, its sizes cut down and its weights looked at on the way.

    REHEARSAL=settings.json python -m launching.rehearsal.stage [flags of submission_runner]

Neither the runner nor a submission is changed. Workloads are subclasses with smaller numbers. A submission's functions
are called through others that note the time and a sample of the weights. `settings.json` has the fields of
`Stage`.
"""

import functools
import importlib
import inspect
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from launching.rehearsal import averages, frameworks, on_cpu
from launching.rehearsal.record import RESTORED, SEEN, TRAINED, UPDATED, Record

HELD_SECONDS = 600


@dataclass(frozen=True)
class Stage:
    """What is asked of this process.

    Attributes:
        framework: pytorch or jax.
        record: the folder of the record.
        part: 1 of a run that is begun, 2 of one that is resumed.
        on_cpu: whether GPUs are stood in for.
        size: as launching/rehearsal/sizes.py `settings` gives it.
    """

    framework: str
    record: str
    part: int
    on_cpu: bool
    size: dict[str, Any]


class Rehearsal:
    """Wraps what the runner calls."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.size = stage, stage.size
        self.rank = int(os.environ.get("RANK", "0"))
        self.record = Record(Path(stage.record), stage.part)
        self.framework = frameworks.of(stage.framework)
        self.step = 0
        self.in_update = False

    def note(self, name: str, **values: Any) -> None:
        if self.rank == 0:
            self.record.event(name, self.step, device_gib=self.framework.peak_gib(), **values)

    def keep(self, moment: str, params: Any) -> None:
        if self.rank == 0:
            self.record.keep(moment, self.step, self.framework.samples(params))

    def timed(self, name: str, function: Callable[..., Any], **values: Any) -> Callable[..., Any]:
        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            result = function(*args, **kwargs)
            self.framework.wait(result)
            self.note(name, seconds=time.perf_counter() - begin, **values)
            return result

        return called

    def workload_class(self, base: Any) -> type:
        """A subclass with smaller numbers, which notes what training and evaluations see."""
        rehearsal, size = self, self.size
        numbers: dict[str, float | None] = {
            "eval_batch_size": size["eval_batch"],
            "num_train_examples": size["train_examples"],
            "num_eval_train_examples": size["examples"],
            "num_validation_examples": size["examples"],
            "num_test_examples": size["examples"],
            "eval_period_time_sec": 1e-6,  # after every update, and still a period to those who count updates in it
            "step_hint": size["step_hint"],
            "max_allowed_runtime_sec": 10**6,  # or a busy machine ends mnist's 60 seconds before the last update
        }
        if not base.num_test_examples.fget(None):  # the language model has no test set
            del numbers["num_test_examples"]
        values = {name: _constant(value) for name, value in numbers.items() if value is not None}
        signature = inspect.signature(base.model_fn)

        def model_fn(self: Any, *args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(self, *args, **kwargs).arguments
            if rehearsal.in_update and bound["mode"].name == "TRAIN":
                rehearsal.framework.watch(bound["params"], rehearsal.trained_with)
            return base.model_fn(self, *args, **kwargs)

        def eval_model(self: Any, *args: Any, **kwargs: Any) -> Any:
            bound = inspect.signature(base.eval_model).bind(self, *args, **kwargs).arguments
            rehearsal.keep(SEEN, bound["params"])
            begin = time.perf_counter()
            result = base.eval_model(self, *args, **kwargs)
            rehearsal.note("evaluated", seconds=time.perf_counter() - begin)
            return result

        def translate_and_calculate_bleu(self: Any, **kwargs: Any) -> Any:
            return base.translate_and_calculate_bleu(self, **{**kwargs, "max_predict_length": size["translated"]})

        functions = {"model_fn": functools.wraps(base.model_fn)(model_fn), "eval_model": eval_model}
        if size["translated"]:
            functions["translate_and_calculate_bleu"] = translate_and_calculate_bleu
        return type(base.__name__, (base,), {**values, **size["attributes"], **functions})

    def trained_with(self, samples: list[np.ndarray]) -> None:
        if self.rank == 0 and self.in_update:
            self.record.keep(TRAINED, self.step, samples)

    def submission(self, module: Any) -> None:
        """Put the wrapped functions into a submission's module, from which the runner takes them."""
        init, update, batch_size = module.init_optimizer_state, module.update_params, module.get_batch_size

        @functools.wraps(init)
        def init_optimizer_state(workload: Any, params: Any, model_state: Any, hyperparameters: Any, rng: Any) -> Any:
            self.framework.sizes_of(params)
            promise = averages.promise_of(module, hyperparameters, workload.step_hint)
            self.keep(UPDATED, params)
            self.note("initialised", promise=promise, averaging_hook=hasattr(module, "prepare_for_eval"))
            return init(workload, params, model_state, hyperparameters, rng)

        @functools.wraps(update)  # the runner looks whether it takes a train_state
        def update_params(**kwargs: Any) -> Any:
            self.step = kwargs["global_step"] + 1
            begin = time.perf_counter()
            self.in_update = True
            try:
                result = update(**kwargs)
                self.framework.wait(result[1])
                seconds = time.perf_counter() - begin
                self.framework.deliver()
            finally:
                self.in_update = False
            self.keep(UPDATED, result[1])
            self.note("updated", seconds=seconds)
            return result

        module.init_optimizer_state, module.update_params = init_optimizer_state, update_params
        module.data_selection = self.timed("batch", module.data_selection)
        if hasattr(module, "prepare_for_eval"):
            module.prepare_for_eval = self.timed("prepared", module.prepare_for_eval)

        @functools.wraps(batch_size)
        def get_batch_size(workload_name: str) -> int:
            try:
                official = batch_size(workload_name)
            except ValueError:  # of a variant: the runner then asks for the workload's
                if not self.size["batch"]:
                    raise
                official = None
            chosen: int = self.size["batch"] or official >> self.size["halvings"]
            self.note("batch size", batch=chosen, official=official)
            return chosen

        module.get_batch_size = get_batch_size

    def checkpoints(self, utils: Any) -> None:
        """Note when a checkpoint is whole, and what was restored of one."""
        restore = utils.maybe_restore_checkpoint

        def maybe_restore_checkpoint(*args: Any, **kwargs: Any) -> Any:
            result = restore(*args, **kwargs)
            self.step = int(result[5])
            if self.step:
                self.keep(RESTORED, result[1])
                self.note("restored")
            return result

        save = self.timed("saved", utils.save_checkpoint)

        def save_checkpoint(*args: Any, **kwargs: Any) -> Any:
            result = save(*args, **kwargs)
            if self.stage.part == 1 and self.step == self.size["killed_after"]:
                time.sleep(HELD_SECONDS)  # or a fast run would be over before it is killed
            return result

        utils.maybe_restore_checkpoint = maybe_restore_checkpoint
        utils.save_checkpoint = save_checkpoint


def _constant(value: float) -> property:
    return property(lambda self: value)


def main() -> None:
    stage = Stage(**json.loads(Path(os.environ["REHEARSAL"]).read_text()))
    if os.environ.get("RANK", "0") == "0":
        Record(Path(stage.record), stage.part).event("started")
    if stage.on_cpu:
        on_cpu.replace_all()
    runner = importlib.import_module("submission_runner")
    app, flags = (importlib.import_module(f"absl.{name}") for name in ("app", "flags"))
    workloads: Any = importlib.import_module("algoperf.workloads.workloads")
    rehearsal = Rehearsal(stage)
    real = workloads.import_workload

    def import_workload(workload_path: str, workload_class_name: str, **options: Any) -> Any:
        base = real(workload_path, workload_class_name, return_class=True)
        return rehearsal.workload_class(base)(**(options.get("workload_init_kwargs") or {}))

    workloads.import_workload = import_workload
    rehearsal.checkpoints(runner.checkpoint_utils)

    def run(argv: list[str]) -> None:
        name = workloads.convert_filepath_to_module(flags.FLAGS.submission_path)
        rehearsal.submission(importlib.import_module(name))
        runner.main(argv)
        rehearsal.note("ended")

    app.run(run)


if __name__ == "__main__":
    main()

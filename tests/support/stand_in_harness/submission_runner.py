"""A stand-in for the harness's runner: as much of it as a rehearsal goes through, in PyTorch, on a linear model.

It evaluates after every update, as a rehearsal has it, calls prepare_for_eval before, saves a checkpoint after, and
goes on from the last one.
"""

import csv
import importlib
import json
from collections import namedtuple
from pathlib import Path

import torch
from absl import flags
from algoperf import checkpoint_utils
from algoperf.workloads import workloads

FLAGS = flags.FLAGS
for name in (
    "framework", "workload", "submission_path", "tuning_ruleset", "tuning_search_space", "data_dir", "experiment_dir",
    "experiment_name",
):  # fmt: skip
    flags.DEFINE_string(name, None, "")
for name in ("num_tuning_trials", "rng_seed", "max_global_steps"):
    flags.DEFINE_integer(name, None, "")
for name in ("resume_last_run", "torch_compile"):
    flags.DEFINE_boolean(name, False, "")

CLOCK = ("accumulated_submission_time", "accumulated_eval_time", "accumulated_logging_time", "score", "total_duration")


def main(_):
    module = importlib.import_module(workloads.convert_filepath_to_module(FLAGS.submission_path))
    entry = workloads.WORKLOADS[FLAGS.workload]
    workload = workloads.import_workload(entry["workload_path"], entry["workload_class_name"], workload_init_kwargs={})
    point = json.loads(Path(FLAGS.tuning_search_space).read_text())[0] if FLAGS.tuning_search_space else None
    hyperparameters = None if point is None else namedtuple("Hyperparameters", point)(**point)
    trial = Path(FLAGS.experiment_dir, FLAGS.experiment_name, f"{FLAGS.workload}_{FLAGS.framework}", "trial_1")
    trial.mkdir(parents=True, exist_ok=bool(FLAGS.resume_last_run))

    torch.manual_seed(FLAGS.rng_seed)
    queue = workload._build_input_queue(FLAGS.data_dir, module.get_batch_size(FLAGS.workload))
    model, model_state = workload.init_model_fn([0, FLAGS.rng_seed])
    state = module.init_optimizer_state(workload, model, model_state, hyperparameters, [0, 1])
    state, model, model_state, _, results, step, preemptions = checkpoint_utils.maybe_restore_checkpoint(
        "pytorch", state, model, model_state, {}, [], 0, 0, checkpoint_dir=str(trial)
    )
    while step < FLAGS.max_global_steps:
        batch = module.data_selection(workload, queue, state, model, model_state, hyperparameters, step, [0, 2])
        common = {
            "workload": workload, "current_param_container": model, "current_params_types": None,
            "model_state": model_state, "hyperparameters": hyperparameters, "loss_type": None,
            "eval_results": results, "rng": [0, step],
        }  # fmt: skip
        state, model, model_state = module.update_params(
            **common, batch=batch, optimizer_state=state, global_step=step, train_state={}
        )
        step += 1
        if hasattr(module, "prepare_for_eval"):
            state, model, model_state = module.prepare_for_eval(**common, optimizer_state=state, global_step=step)
        result = workload.eval_model(8, model, model_state, [0, 3], FLAGS.data_dir, None, step)
        results.append((step, result))
        row = {**result, **dict.fromkeys(CLOCK, float(step)), "global_step": step, "preemption_count": preemptions}
        path = trial / "eval_measurements.csv"
        with open(path, "a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if not path.stat().st_size:
                writer.writeheader()
            writer.writerow(row)
        checkpoint_utils.save_checkpoint(
            framework="pytorch", optimizer_state=state, model_params=model, model_state=model_state, train_state={},
            eval_results=results, global_step=step, preemption_count=preemptions, checkpoint_dir=str(trial),
            save_intermediate_checkpoints=False,
        )  # fmt: skip

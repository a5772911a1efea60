"""The official runner with a miniature workload registered in it.

python tests/processes/official_mini.py --workload=mini_imagenet_vit --framework=pytorch ...
"""

import importlib
import sys

import submission_runner
from absl import app, flags

from miniperf.workloads import WORKLOADS
from submissions.recipe.batch_sizes import BATCH_SIZES


def register(name: str) -> None:
    module_name, class_name = WORKLOADS[name]
    module = importlib.import_module(f"miniperf.workloads.{module_name}.pytorch")
    workload = getattr(module, class_name)
    workload.eval_period_time_sec = 0  # evaluate after every update
    # The runner appends the framework and looks the name up below its own package.
    sys.modules[f"algoperf.workloads.{name}_pytorch.workload"] = module
    submission_runner.WORKLOADS[name] = {"workload_path": name, "workload_class_name": class_name}
    BATCH_SIZES[name] = workload.batch_size  # else the runner takes that of the workload whose name is part of it


if __name__ == "__main__":
    register("mini_imagenet_vit")
    flags.mark_flags_as_required(["workload", "framework", "submission_path", "experiment_dir", "experiment_name"])
    app.run(submission_runner.main)

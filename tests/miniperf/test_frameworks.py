"""What belongs to one framework needs no other, and what belongs to none needs none."""

import subprocess
import sys
from pathlib import Path

import pytest

DATA = sorted(".".join(path.with_suffix("").parts) for path in Path("miniperf/workloads").rglob("data.py"))
FRAMEWORKS = ["torch", "jax", "flax", "optax"]


BLOCKED = """
import sys

missing = sys.argv[1].split(",")


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}: blocked", name=name)


sys.meta_path.insert(0, Blocked())
"""


def imports_without(missing: list[str], modules: list[str]) -> None:
    """Import the modules in a process in which the missing ones cannot be."""
    code = BLOCKED + f"import {', '.join(modules)}"
    command = [sys.executable, "-c", code, ",".join(missing)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_data_of_the_miniatures_needs_no_framework():
    assert len(DATA) >= 7
    imports_without(FRAMEWORKS, DATA)


def test_the_recipe_itself_needs_no_framework():
    modules = [f"submissions.recipe.{path.stem}" for path in Path("submissions/recipe").glob("*.py")]
    imports_without(FRAMEWORKS, ["submissions.api", *modules])


LIBRARY = [
    ".".join(path.with_suffix("").parts)
    for path in sorted(Path("weight_averaging").rglob("*.py"))
    if path.name != "__main__.py"
]
OF_FLAX = ["weight_averaging.jax.nnx"]
OF_JAX = [name for name in LIBRARY if name.startswith("weight_averaging.jax") and name not in OF_FLAX]
OF_TRAINERS = [name for name in LIBRARY if name.startswith("weight_averaging.trainers")]
OF_NONE = [
    f"weight_averaging.{name}"
    for name in ("averages", "averages.schedule", "include_exclude", "tensor_names", "placement")
]


def test_each_framework_is_enough_for_its_part_of_the_library():
    others = [name for name in LIBRARY if name not in {*OF_JAX, *OF_FLAX, *OF_TRAINERS}]
    imports_without(["jax", "flax", "optax", "orbax"], others)
    imports_without(["torch", "flax", "optax", "orbax"], [*OF_JAX, *OF_NONE, "weight_averaging.convert"])


def test_definitions_need_neither_framework_nor_numpy():
    imports_without([*FRAMEWORKS, "numpy"], ["weight_averaging", *OF_NONE])


RUN = """
from miniperf import submission_runner
from absl import app
sys.argv[1:] = sys.argv[2:]
app.run(submission_runner.main)
"""


def run_without(missing: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """miniperf's runner for a few updates in a process in which some packages cannot be imported."""
    command = [
        sys.executable, "-c", BLOCKED + RUN, missing, "--experiment_name=x", "--max_global_steps=4",
        "--eval_every_n_steps=2", "--rng_seed=1", "--tuning_search_space=tuning_search_spaces/lawa.json", *flags,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_run_in_pytorch_needs_no_jax(tmp_path):
    flags = ["--workload=mini_imagenet_vit", "--submission_path=submissions/pytorch/lawa/submission.py"]
    result = run_without("jax,jaxlib,flax,optax", *flags, f"--experiment_dir={tmp_path}")
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "x" / "mini_imagenet_vit_pytorch" / "trial_1" / "checkpoint_4").exists()


def test_a_run_in_jax_needs_no_torch(tmp_path):
    pytest.importorskip("flax")
    flags = ["--workload=mini_imagenet_vit", "--submission_path=submissions/jax/lawa/submission.py", "--framework=jax"]
    result = run_without("torch", *flags, f"--experiment_dir={tmp_path}")
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "x" / "mini_imagenet_vit_jax" / "trial_1" / "checkpoint_4").exists()


def test_a_missing_framework_is_one_line(tmp_path):
    flags = ["--workload=mini_imagenet_vit", "--submission_path=submissions/pytorch/lawa/submission.py"]
    result = run_without("torch", *flags, f"--experiment_dir={tmp_path}")
    assert (result.returncode, result.stderr) == (
        2, "error: --framework=pytorch: torch is not installed: pip install torch\n"
    )  # fmt: skip
    result = run_without("flax", *flags, "--framework=jax", f"--experiment_dir={tmp_path}")
    assert result.stderr == "error: --framework=jax: flax is not installed: pip install jax flax optax\n"

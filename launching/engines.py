"""The same command elsewhere: in the image, or as one Slurm job."""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping

from absl import flags

from weight_averaging.errors import UsageError

HERE = {"engine", "dry_run"}  # flags that say where a command runs, and mean nothing there


def same_flags(values: flags.FlagValues, modules: Collection[object], left_out: Collection[str] = ()) -> list[str]:
    """The flags of this command that were given, but for some.

    Args:
        modules: whose flags they are.
    """
    known = [flag for module in modules for flag in values.get_key_flags_for_module(module)]
    given = {flag.name: flag for flag in known if flag.present}
    return [flag.serialize() for flag in given.values() if flag.name not in {*HERE, *left_out}]


def in_docker(
    workload: str, submission: str, rest: Collection[str], settings: Mapping[str, object], dry_run: bool
) -> list[str]:
    """The command that starts a container; the checks are made inside, by the same script.

    Args:
        rest: further flags of the script.
        settings: of docker/run_workload.sh, which makes the mounts; None leaves its default.
        dry_run: whether to give the command of Docker itself, to be shown.

    Raises:
        UsageError: no Docker answers.
    """
    if not dry_run and not _answers(["docker", "info"]):
        raise UsageError("--engine=docker: there is no docker here, or its daemon does not answer")
    variables = [f"{name}={value}" for name, value in settings.items() if value is not None]
    command = ["docker/run_workload.sh", workload, submission, *rest]
    if dry_run:
        shown = ["env", *variables, "DRY_RUN=1", *command]
        return shlex.split(subprocess.run(shown, capture_output=True, text=True, check=True).stdout)
    return ["env", *variables, *command]


def on_slurm(
    module: str, rest: Collection[str], name: str, gpus: int | None, sbatch_args: str, dry_run: bool
) -> list[str]:
    """The command that submits `python -m module` as one job, which Slurm requeues where it stops it.

    Args:
        rest: flags of the module, with which it goes on after a stop.
        gpus: of the job.
        sbatch_args: further ones, as on the command line.

    Raises:
        UsageError: it is not said how many GPUs, or no Slurm answers.
    """
    if gpus is None:
        raise UsageError("--engine=slurm: say how many --gpus a job gets")
    if not dry_run and not _answers(["sinfo"]):
        raise UsageError("--engine=slurm: there is no Slurm here, or it does not answer")
    return [
        "sbatch", f"--job-name={name}", "--nodes=1", *([f"--gpus-per-node={gpus}"] if gpus else []), "--requeue",
        "--open-mode=append", *shlex.split(sbatch_args), "--wrap", shlex.join([sys.executable, "-m", module, *rest]),
    ]  # fmt: skip


def _answers(command: list[str]) -> bool:
    return shutil.which(command[0]) is not None and subprocess.run(command, capture_output=True).returncode == 0

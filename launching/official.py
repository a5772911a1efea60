"""The command line of a run under the official harness, and what is checked before it starts."""

import importlib.metadata
import importlib.util
import json
import re
import sys
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from launching.official_workloads import WORKLOADS, base_name, needs_of
from miniperf import submission
from miniperf.logs import check_hyperparameters
from submissions.recipe.batch_sizes import get_batch_size
from weight_averaging.errors import UsageError

# Flags of the official runner that are passed on as they were given.
PASSED_ON = (
    "tuning_ruleset", "tuning_search_space", "num_tuning_trials", "hparam_start_index", "hparam_end_index", "rng_seed",
    "max_global_steps", "save_checkpoints", "save_intermediate_checkpoints", "resume_last_run", "overwrite",
)  # fmt: skip

COMMIT = "b21be29be0a1573fb4f78f849aea019cdb520862"  # of the harness, that of the published runs on 4 x A100
FLAX_FORMAT = "FLAX_USE_ORBAX_CHECKPOINTING=false"
RESTORED_IN_JAX = (
    "--resume_last_run: the harness restores arrays in JAX with one axis too many; the submissions of this repository "
    "take it off, of others it has to be expected that they fail or train on in wrong shapes"
)


def gpus_found(asked: int | None) -> int:
    """How many GPUs to use: those asked for, which must be there, else all. 0 asks for one process on the CPU."""
    import torch  # not to run a submission in JAX

    found = torch.cuda.device_count()
    if asked is None and found == 0:
        raise UsageError("no GPU found: the official harness wants one; --gpus=0 runs on the CPU (mnist, to try out)")
    if asked is not None and asked > found:
        raise UsageError(f"--gpus={asked}: only {found} found")
    return found if asked is None else asked


def check_harness(workload: str, path: Path | None = None) -> str:
    """What is to be told of the harness; UsageError unless it can run this workload and calls prepare_for_eval.

    Args:
        path: of its sources; None: the installed one, which must be of 2026.
    """
    name, runner, registry = _harness_files(path)
    # Read, not imported: that takes ten seconds.
    if "prepare_for_eval" not in runner.read_text():
        raise UsageError(f"{runner} knows no prepare_for_eval: too old, algoperf v0.6.0 or newer is needed")
    known = re.findall(r"'(\w+)': \{", registry.read_text())
    of_2026 = "finewebedu_lm" in known
    if not of_2026 and path is None:
        raise UsageError(
            f"{name} is from before 2026, with budgets of 8 x V100: docs/official.md has the present one; "
            f"--harness_path={runner.parent} runs this one all the same"
        )
    if workload not in known:
        raise UsageError(f"--workload={workload} is unknown to {name}; it has {', '.join(known)}")
    if not of_2026:
        return f"{name} is from before 2026: it stops runs at the budgets of 8 x V100"
    commit = COMMIT if path is not None else _installed_commit()
    return "" if commit == COMMIT else f"{name} is of commit {commit[:8]}; the published runs are of {COMMIT[:8]}"


def _installed_commit() -> str:
    """Of the installed harness, as pip has noted it; COMMIT where it was installed from a folder."""
    try:
        noted = importlib.metadata.distribution("algoperf").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return COMMIT
    return str(json.loads(noted or "{}").get("vcs_info", {}).get("commit_id", COMMIT))


def _harness_files(path: Path | None) -> tuple[str, Path, Path]:
    """The harness in words, its runner, its register of workloads."""
    if path is not None:
        runner, registry = path / "submission_runner.py", path / "algoperf" / "workloads" / "workloads.py"
        if not (runner.is_file() and registry.is_file()):
            raise UsageError(
                f"--harness_path={path}: no sources of the harness, which have {runner.name} and algoperf/"
            )
        version = path / "algoperf" / "_version.py"  # an installation writes it, a checkout has none
        if "_version" in (path / "algoperf" / "__init__.py").read_text() and not version.exists():
            raise UsageError(f"--harness_path={path} cannot be imported: echo \"version = 'checkout'\" > {version}")
        return f"--harness_path={path}", runner, registry
    spec, package = importlib.util.find_spec("submission_runner"), importlib.util.find_spec("algoperf")
    if package is None or spec is None or not package.submodule_search_locations or spec.origin is None:
        raise UsageError("algoperf is not installed: see docs/official.md for the command, or use --engine=docker")
    registry = Path(package.submodule_search_locations[0], "workloads", "workloads.py")
    return "the installed algoperf", Path(spec.origin), registry


def check_batch_size(workload: str, gpus: int, flag: str = "gpus") -> None:
    """UsageError unless the batch of this repository's submissions splits evenly.

    Args:
        flag: by which their number was given.
    """
    try:
        size = get_batch_size(workload)
    except ValueError:
        size = get_batch_size(base_name(workload))
    if size % max(gpus, 1):
        raise UsageError(f"--{flag}={gpus}: the batch of {size} on {workload} does not divide by it")


def check_data(workload: str, root: str, framework: str) -> None:
    """UsageError that names what is missing and the command that makes it."""
    needs = needs_of(workload, framework)
    folder = Path(root).expanduser() / needs.folder
    missing = [pattern for pattern in needs.contents if not any(folder.glob(pattern))]
    if missing:
        what = f"{folder} lacks {', '.join(missing)}" if folder.is_dir() else f"there is no folder {folder}"
        raise UsageError(f"--data_dir={root}: {what}; make it with: {needs.setup_command(root)}")


def check_image_lists(workload: str, root: str, framework: str, working: Path) -> None:
    """UsageError if a list of images that an earlier run left in the working directory is of another data set.

    In PyTorch the harness lists ImageNet's files once, in the working directory, and takes that list for whatever
    --data_dir is given afterwards.
    """
    needs = needs_of(workload, framework)
    if not needs.folder.startswith("imagenet/pytorch"):
        return
    for split, name in (("train", "train"), ("eval_train", "train"), ("validation", "val")):
        path = working / f".imagenet_{split}_cache_index.json"
        folder = Path(root).expanduser() / needs.folder / name
        if path.exists() and not _lists(path, folder):
            raise UsageError(
                f"{path} lists other images than there are in {folder}: remove it, the harness makes it anew"
            )


def _lists(path: Path, folder: Path) -> bool:
    """Whether the list has the classes of the folder, and their first and last with the images that they hold."""
    try:
        listed = json.loads(path.read_text())
        names = [name for name, _ in listed["samples"]]
    except (ValueError, KeyError, TypeError):
        return False
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if listed.get("classes") != classes:
        return False
    looked_at = {*classes[:1], *classes[-1:]}
    held = {f"{name}/{file.name}" for name in looked_at for file in (folder / name).iterdir()}
    return {name for name in names if name.split("/")[0] in looked_at} == held


def remove_torn_checkpoints(trials: Iterable[Path]) -> list[Path]:
    """Remove and return what a kill left half written in the folders of trials, of which no other job may be at work.

    The harness writes a checkpoint in place, and cannot resume while the last one is torn.
    """
    # torch.save writes a ZIP archive, the directory of which comes last.
    torn = [path for trial in trials for path in trial.glob("checkpoint_*") if not zipfile.is_zipfile(path)]
    for path in torn:
        path.unlink()
    return torn


def check_jax_checkpoints(trials: Iterable[Path]) -> None:
    """UsageError if one of the folders of trials in JAX holds a checkpoint that the harness cannot restore.

    Left to itself flax saves through Orbax, which gives nothing back for the evaluations so far. The harness then fails
    ("'NoneType' object has no attribute 'items'") before the submission is asked. A run started by this repository has
    FLAX_FORMAT in its environment. What the harness does then to a restored state, recipe/jax/resuming.py takes back.
    """
    for trial in trials:
        for path in trial.glob("checkpoint_*"):
            if path.is_dir():
                raise UsageError(
                    f"--resume_last_run: the harness cannot restore {path}, which it wrote through Orbax: start anew "
                    f"with --overwrite, or keep the run and take another --experiment_name; {FLAX_FORMAT} "
                    "in the environment, as scripts.run has it, makes a run resumable"
                )


def check_resumed(trials: Mapping[Path, Any], max_global_steps: int | None) -> None:
    """UsageError if a run cannot be resumed as asked. The harness itself would say nothing.

    It continues with the hyperparameters that a trial began with. It never ends a run that is beyond
    `max_global_steps`, and leaves one that ended at an earlier `max_global_steps` as it is.

    Args:
        trials: the hyperparameters by folder; None of a trial is not looked at.
    """
    for folder, hyperparameters in trials.items():
        if hyperparameters is not None:
            check_hyperparameters(folder, hyperparameters)
        steps = [int(name) for path in folder.glob("checkpoint_*") if (name := path.name.split("_")[1]).isdigit()]
        earlier = [json.loads(path.read_text()).get("max_global_steps") for path in folder.glob("flags_*.json")]
        last = max(steps, default=0)
        if not steps or last == max_global_steps:
            continue
        what = f"{folder} ended at update {last} by an earlier --max_global_steps" if last in earlier else ""
        if max_global_steps is not None and last > max_global_steps:
            what = f"{folder} is at update {last} already, beyond --max_global_steps={max_global_steps}"
        if what:
            remedy = "give another --experiment_name, or replace the run with --overwrite"
            raise UsageError(f"{what}, and the harness cannot continue it: {remedy}")


def check_seed(seed: int | None) -> None:
    if seed is not None and not 0 < seed < 2**32:
        raise UsageError(f"--rng_seed={seed}: give one in 1 ... 2**32 - 1; the harness takes 0 for none and draws one")


def check_trials(
    submission_path: str, search_space: str | None, trials: list[Any], workload: str, framework: str
) -> None:
    """UsageError if the path is unusable, the submission is in another framework, or it can tell that it cannot train
    with one of the trials.

    Only submissions that can tell are imported: others may import the harness, which takes ten seconds.

    Args:
        search_space: the file of the trials; None under self-tuning, where the one trial is None.
    """
    if "check_hyperparameters" not in submission.check_path(submission_path).read_text():
        return
    module = submission.load(submission_path, framework)
    try:
        submission.check_trials(module, trials, WORKLOADS[base_name(workload)].step_hint)
    except UsageError as error:
        flag = "--tuning_ruleset=self" if search_space is None else f"--tuning_search_space={search_space}"
        raise UsageError(f"{flag} does not fit {submission_path}: {error}") from None


def command(
    framework: str,
    workload: str,
    submission_path: str,
    gpus: int,
    data_root: str,
    experiment_dir: str,
    experiment_name: str,
    flags: dict[str, Any],
    torch_compile: bool | None = None,
) -> list[str]:
    """The official runner's command line: in PyTorch one process a GPU, in JAX one for all.

    Args:
        data_root: holds one folder a data set.
        flags: those of PASSED_ON, by name; None leaves one out.
        torch_compile: default: wherever the harness can.
    """
    needs = needs_of(workload, framework)
    data = str(Path(data_root).expanduser() / needs.folder)
    several, compiled = [], []
    if framework == "pytorch":
        if gpus > 1:
            several = ["-m", "torch.distributed.run", "--standalone", "--nnodes=1", f"--nproc_per_node={gpus}"]
        compiles = needs.compile and gpus > 0 if torch_compile is None else torch_compile
        compiled = [f"--torch_compile={str(compiles).lower()}"]
    return [
        sys.executable, *several, "-m", "submission_runner", f"--framework={framework}",
        f"--workload={workload}", f"--submission_path={submission_path}", f"--data_dir={data}",
        *[flag.format(data=data) for flag in needs.flags],
        f"--experiment_dir={Path(experiment_dir).expanduser().absolute()}", f"--experiment_name={experiment_name}",
        *compiled, *[f"--{name}={_text(flags[name])}" for name in PASSED_ON if flags.get(name) is not None],
    ]  # fmt: skip


def environment(framework: str, gpus: int, visible: str | None) -> dict[str, str]:
    """What the runner wants in its environment beside PYTHONPATH.

    Args:
        visible: CUDA_VISIBLE_DEVICES as it is, if it is set. A process in JAX takes all that it sees.
    """
    if framework == "pytorch":
        return {"CUDA_VISIBLE_DEVICES": ""} if gpus == 0 else {}
    name, _, value = FLAX_FORMAT.partition("=")
    if gpus == 0:
        return {name: value, "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    seen = visible.split(",") if visible else [str(number) for number in range(gpus)]
    return {name: value, "CUDA_VISIBLE_DEVICES": ",".join(seen[:gpus])}


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

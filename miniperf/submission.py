"""Importing a submission, as the official harness does: by a relative path from the working directory."""

import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from miniperf import frameworks
from weight_averaging.errors import UsageError

PACKAGES = ("algoperf", "algorithmic_efficiency")  # the harness's own name; until v0.5
FUNCTIONS = ("init_optimizer_state", "update_params", "data_selection", "get_batch_size")


def check_path(path: str) -> Path:
    """The file of a submission. UsageError unless the official harness could make a module's name of its path."""
    if os.path.isabs(path):
        raise UsageError(f"--submission_path={path} is absolute; give it relative to the working directory")
    parts = Path(path)
    if parts.suffix != ".py" or ".." in parts.parts or any("." in part for part in parts.with_suffix("").parts):
        raise UsageError(f"--submission_path={path} must be a .py file below the working directory, with no other dots")
    if not parts.is_file():
        raise UsageError(f"--submission_path={path} does not exist below {os.getcwd()}")
    return parts


def load(path: str, framework: str = "pytorch") -> ModuleType:
    """The submission module. UsageError for an unusable path, a missing function, or another framework."""
    parts = check_path(path)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    with _standing_in(framework):
        try:
            module = importlib.import_module(".".join(parts.with_suffix("").parts))
        except SystemExit as error:
            raise UsageError(f"{path} ends the process while it is imported: sys.exit({error.code!r})") from None
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(_why_not(path, error)) from error
    missing = [name for name in FUNCTIONS if not callable(getattr(module, name, None))]
    if missing:
        raise UsageError(f"{path} lacks the function {', '.join(missing)}; a submission exports {', '.join(FUNCTIONS)}")
    for other in frameworks.NAMES:
        if other != framework and _uses(module, other) and not _uses(module, framework):
            remedy = f"it is a submission in {other}; run it with --framework={other}"
            raise UsageError(f"--submission_path={path} does not fit --framework={framework}: {remedy}")
    return module


def _why_not(path: str, error: Exception) -> str:
    """One line on a submission that cannot be imported: what it wants, or where it fails."""
    package = str(error.name).partition(".")[0] if isinstance(error, ImportError) else ""
    if package in (*PACKAGES, "miniperf"):
        what, remedy = str(error).partition(" (")[0], "run it under the harness itself, --harness=official"
        return f"{path} imports of algoperf what miniperf does not have: {what}; {remedy}"
    if isinstance(error, ModuleNotFoundError):
        beside = next(Path(path).parent.glob("requirements*.txt"), None)
        remedy = "install the package that has it" if beside is None else f"see {beside}"
        return f"{path} imports {error.name}, which is not installed: {remedy}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    says = " ".join(str(error).split()) or "no message"
    return f"{path} fails while it is imported: {type(error).__name__}: {says} ({last.filename}:{last.lineno})"


@contextlib.contextmanager
def _standing_in(framework: str) -> Iterator[None]:
    """Within the block a submission that imports `algoperf` gets miniperf's modules of the same names.

    With those of an installed `algoperf` it would not fit the workloads here: the members of an enum are equal to none
    of another enum. What a function imports later is not stood in for. In a process of the official harness all is
    left as it is.
    """
    if "algoperf.spec" in sys.modules:
        yield
        return
    names = ["", ".spec", ".random_utils", {"pytorch": ".pytorch_utils", "jax": ".jax_sharding_utils"}[framework]]
    before = {f"{package}{name}": sys.modules.get(f"{package}{name}") for package in PACKAGES for name in names}
    for package in PACKAGES:
        sys.modules.update({f"{package}{name}": importlib.import_module(f"miniperf{name}") for name in names})
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def _uses(module: ModuleType, framework: str) -> bool:
    """Whether the modules that its functions are from have imported something of a framework by name."""
    homes = {module.__name__, *(getattr(module, name).__module__ for name in FUNCTIONS)}
    values = [value for home in homes if home in sys.modules for value in vars(sys.modules[home]).values()]
    names = {getattr(value, "__name__" if isinstance(value, ModuleType) else "__module__", None) for value in values}
    return any(str(name).split(".")[0] in frameworks.PACKAGES[framework] for name in names)


def batch_size(module: ModuleType, workload_name: str, workload: Any) -> int:
    """What the submission says for this workload, else the workload's own: submissions know only the official ones."""
    try:
        return module.get_batch_size(workload_name)
    except ValueError:
        return workload.batch_size


def check_trials(module: ModuleType, trials: list[Any], step_hint: int) -> None:
    """Ask the submission, if it can tell, whether it can train with the hyperparameters of every trial.

    None, the one trial under self-tuning, asks whether it has its own.
    """
    check = getattr(module, "check_hyperparameters", None)
    if check is None:
        return
    for number, hyperparameters in enumerate(trials, start=1):
        try:
            check(hyperparameters, step_hint)
        except ValueError as error:
            trial = "" if hyperparameters is None else f"trial {number}: "
            raise UsageError(f"{trial}{error}") from None

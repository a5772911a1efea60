"""A folder with another submission and its average: the base unchanged, beside a dozen lines and what they need."""

import ast
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from launching import bundle, own_imports, submission_info
from weight_averaging.atomic_file import partial_beside
from weight_averaging.errors import UsageError

NEEDED = ("init_optimizer_state", "update_params", "data_selection", "get_batch_size")
OPTIONAL = ("get_eval_batch_size",)
AVERAGES = {
    "lawa": "the mean of its latest snapshots (LAWA)",
    "ema": "an exponential average of its weights (EMA)",
    "growing": "an average over a constant share of the updates so far",
}
PAPERS = {"averaging_horizon": 0.01, "averaging_window": 20}  # of step_hint, and snapshots in that
HYPERPARAMETERS = {"lawa": PAPERS, "ema": PAPERS, "growing": {"averaging_share": 0.15}}
PACKAGES = {"pytorch": ("torch",), "jax": ("jax", "flax", "optax")}
PREFIX = "averaging_"

MODULE = '''"""{name}, evaluated at {what}. It trains as it does alone."""

from ..averaged.{framework} import averaged, {averaging}
from .base import {module} as base

submission = averaged(base, {averaging}{options})

init_optimizer_state = submission.init_optimizer_state
update_params = submission.update_params
prepare_for_eval = submission.prepare_for_eval
data_selection = submission.data_selection
get_batch_size = submission.get_batch_size
'''


@dataclass(frozen=True)
class Base:
    """A submission that somebody else wrote.

    Attributes:
        path: its file.
        folder: its folder, if it imports or reads from there; its file alone is copied else.
        framework: pytorch or jax.
        functions: the names that it defines.
        info: of its submission_info.yml; empty without one.
    """

    path: Path
    folder: Path | None
    framework: str
    functions: frozenset[str]
    info: Mapping[str, str]

    @property
    def name(self) -> str:
        """Of its folder, as the leaderboard names submissions; of the file if that says more."""
        if self.path.stem != "submission":
            return self.path.stem
        folder = self.path.resolve().parent
        return folder.parent.name if folder.name in PACKAGES else folder.name


def read(path: Path, framework: str | None = None) -> Base:
    """Look through the file of a submission without running it.

    Args:
        framework: pytorch or jax, for one that imports both or neither by name.
    Raises:
        UsageError: it is no submission, or cannot be taken out of its place.
    """
    if not path.is_file():
        raise UsageError(f"--submission_path={path}: there is no such file")
    try:
        tree = ast.parse(path.read_text())
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        what = f"line {error.lineno}: {error.msg}" if isinstance(error, SyntaxError) else str(error)
        raise UsageError(f"--submission_path={path} cannot be read as Python: {what}") from None
    names, packages, levels = set(), set(), {0}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.Import):
            packages |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            levels.add(node.level)
            names |= {alias.asname or alias.name for alias in node.names}
            packages |= {(node.module or "").partition(".")[0]} if not node.level else set()
    if missing := [name for name in NEEDED if name not in names]:
        raise UsageError(f"--submission_path={path} is no submission: it lacks {', '.join(missing)}")
    if max(levels) > 1:
        raise UsageError(
            f"--submission_path={path} imports from above its folder: give one that stands alone, as scripts.bundle "
            "writes it"
        )
    text = path.read_text()
    with_folder = 1 in levels or "__file__" in text or own_imports.relative(text, path, path.parent) != text
    found = [framework for framework, of in PACKAGES.items() if packages & set(of)]
    if len(found) != 1 and with_folder:  # what it imports from beside it may tell
        beside = "\n".join(other.read_text() for other in path.parent.rglob("*.py"))
        found = [framework for framework, of in PACKAGES.items() if any(f"import {p}" in beside for p in of)]
    if len(found) != 1 and framework is None:
        raise UsageError(f"--submission_path={path} imports neither torch alone nor JAX alone: give --framework")
    used = found[0] if len(found) == 1 else str(framework)
    return Base(path, path.parent if with_folder else None, used, frozenset(names), _info(path.parent))


def _info(folder: Path) -> dict[str, str]:
    """What the base's submission_info.yml says, which some name otherwise; {} without one that can be read."""
    for path in sorted(folder.glob("submission*_info.y*ml")):
        try:
            fields = yaml.safe_load(path.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            continue
        if isinstance(fields, dict):
            lists = {name: ", ".join(map(str, value)) for name, value in fields.items() if isinstance(value, list)}
            texts = {str(name): str(lists.get(name, value) or "") for name, value in fields.items()}
            return {name: " ".join(re.sub(submission_info.UNFIT, " ", text).split()) for name, text in texts.items()}
    return {}


def search_space(path: Path, values: Mapping[str, Any]) -> Any:
    """The base's search space with the hyperparameters of the average in it.

    Raises:
        UsageError: it cannot be read, or has some already.
    """
    try:
        space = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UsageError(f"--tuning_search_space={path}: {error}") from None
    points = space if isinstance(space, list) else [space]
    if not points or not all(isinstance(point, dict) for point in points):
        raise UsageError(f"--tuning_search_space={path} is neither a list of points nor ranges by name")
    if taken := sorted({name for point in points for name in point if name.startswith(PREFIX)}):
        raise UsageError(f"--tuning_search_space={path} has {taken[0]} already: its submission averages itself")
    if isinstance(space, list):
        return [{**point, **values} for point in space]
    return {**space, **{name: {"feasible_points": [value]} for name, value in values.items()}}


def write(
    root: Path,
    base: Base,
    averaging: str,
    values: Mapping[str, Any],
    space: Path | None,
    folder: Path,
    options: Mapping[str, Any],
) -> list[Path]:
    """Write the folder; returns its files.

    Args:
        root: of this repository.
        averaging: one of AVERAGES.
        values: hyperparameters of the average, by name.
        space: the base's search space; None: it tunes itself, and so `values` go into the module.
        options: of `submissions.averaged.base.averaged`.
    Raises:
        UsageError: the folder exists, or something of the base stands in the way.
    """
    given = {"point": dict(values), **options} if space is None else dict(options)
    text = MODULE.format(
        name=base.name,
        what=AVERAGES[averaging],
        framework=base.framework,
        averaging=averaging,
        module=base.path.stem,
        options="".join(f", {name}={value!r}" for name, value in given.items()),
    )
    kept = [name for name in OPTIONAL if name in base.functions]
    text += "".join(f"{name} = base.{name}\n" for name in kept)
    whole = None if space is None else search_space(space, values)
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        for part in ("submissions", "weight_averaging"):
            shutil.copytree(root / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy2(root / "LICENSE", tree)
        made = tree / "submissions" / "made"
        if base.folder is None:
            (made / "base").mkdir(parents=True)
            shutil.copy2(base.path, made / "base")
        else:
            shutil.copytree(base.folder, made / "base", ignore=shutil.ignore_patterns("__pycache__", ".*"))
        for package in (made, made / "base"):
            (package / "__init__.py").touch()
        (made / "submission.py").write_text(text)
        bundle.write(tree, "made", None, folder)
        # The base stays as it is, with all that is beside it, but for imports that named its old place.
        shutil.copytree(made / "base", folder / "base", dirs_exist_ok=True)
    for path, text in with_relative_imports(base).items():
        (folder / "base" / path).write_text(text)
    for path in base.path.parent.glob("requirements*.txt"):  # where the benchmark looks for it
        shutil.copy2(path, folder)
    if whole is not None:
        (folder / submission_info.SPACE).write_text(json.dumps(whole, indent=2) + "\n")
    return sorted(path for path in folder.rglob("*") if path.is_file())


def changed(base: Base, folder: Path) -> list[Path]:
    """Files of the base that are not to the letter as they were, in a folder that was written."""
    return [folder / "base" / path for path in with_relative_imports(base)]


def with_relative_imports(base: Base) -> dict[Path, str]:
    """Texts of the base's modules that import others of its folder by absolute names, with relative ones."""
    found: dict[Path, str] = {}
    if base.folder is None:
        return found
    for path in sorted(base.folder.rglob("*.py")):
        text = path.read_text()
        if (other := own_imports.relative(text, path, base.folder)) != text:
            found[path.relative_to(base.folder)] = other
    return found


def write_to_run(root: Path, base: Base, averaging: str, space: Path | None, parent: Path) -> Path:
    """Write the folder below `parent`, with the usual hyperparameters of the average; returns it.

    Its name ends in a digest of all that is in it. So whoever runs the same again, another rank or a resumed run,
    finds it as it was, and no run's submission is replaced.

    Raises:
        UsageError: as `write`.
    """
    parent.mkdir(parents=True, exist_ok=True)
    made = partial_beside(parent / "made")  # what a kill leaves is removed by a later call
    try:
        files = write(root, base, averaging, HYPERPARAMETERS[averaging], space, made, {})
        digest = hashlib.sha256()
        for path in files:
            digest.update(str(path.relative_to(made)).encode() + b"\0" + path.read_bytes() + b"\0")
        # Imported by its path, so each part has to be a name.
        folder = parent / f"{re.sub(r'[^0-9a-zA-Z]', '_', base.name)}_{averaging}_{digest.hexdigest()[:8]}"
        try:
            os.rename(made, folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder

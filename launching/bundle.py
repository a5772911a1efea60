"""A self-contained folder of one submission, as the benchmark's repository takes it: relative imports only.

There it is imported as `submissions.<ruleset>_tuning.<name>.submission`, below one more package or none. The modules
that the submission needs, and they in turn, are copied beside it. The module named in each of their import lines is
replaced by its new relative name. Nothing else changes.
"""

import ast
import re
from pathlib import Path

from launching import submission_info
from weight_averaging.errors import UsageError


def write(root: Path, submission: str, search_space: Path | None, folder: Path) -> list[Path]:
    """Write the bundle of `submissions/<submission>/submission.py` into the new `folder`; returns its files.

    Args:
        root: of this repository.
        submission: `pytorch/lawa`, say.
        search_space: of external tuning; None for a self-tuning submission.
    """
    if folder.exists():
        raise UsageError(f"{folder} exists; remove it or choose another --output_dir")
    start = f"submissions.{submission.replace('/', '.')}.submission"
    home = start.removesuffix("submission")
    for module in sorted(_needed(root, start)):
        source = _file(root, module)
        assert source is not None
        target = folder / _place(module, home, source.name == "__init__.py")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_rewritten(root, module, home))
    for package in {path.parent for path in folder.rglob("*.py")} | {folder}:
        (package / "__init__.py").touch()
    (folder / "LICENSE").write_text((root / "LICENSE").read_text())
    if search_space is not None:
        (folder / submission_info.SPACE).write_text(search_space.read_text())
    return sorted(path for path in folder.rglob("*") if path.is_file())


def description(root: Path, submission: str) -> str:
    """The first line of the submission's docstring."""
    return (ast.get_docstring(_tree(root, submission)) or submission).splitlines()[0]


def has_point(root: Path, submission: str) -> bool:
    """Whether a submission brings hyperparameters along: it is for the self-tuning ruleset then."""
    calls = [node for node in ast.walk(_tree(root, submission)) if isinstance(node, ast.Call)]
    return any(keyword.arg == "point" for call in calls for keyword in call.keywords)


def _tree(root: Path, submission: str) -> ast.Module:
    path = root / "submissions" / submission / "submission.py"
    if not path.is_file():
        raise UsageError(f"there is no submissions/{submission}/submission.py")
    return ast.parse(path.read_text())


def _file(root: Path, module: str) -> Path | None:
    path = root.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _needed(root: Path, start: str) -> set[str]:
    """`start` and all modules of this repository that it imports, however far down, with their packages' own."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        module = waiting.pop()
        source = _file(root, module)
        if module in found or source is None:
            continue
        found.add(module)
        for node, target in _imports(root, module, at_run_time=True):
            parents = target.split(".")
            waiting += [".".join(parents[:count]) for count in range(1, len(parents) + 1)]
            waiting += [f"{target}.{alias.name}" for alias in node.names]
    # What lies above the submission in the repository does not in the bundle, whose own package is made there.
    above = start.split(".")
    return found - {".".join(above[:count]) for count in range(1, len(above))}


def _imports(root: Path, module: str, at_run_time: bool = False) -> list[tuple[ast.ImportFrom, str]]:
    """The `from` imports of modules of this repository, with the absolute names of those.

    Args:
        at_run_time: without those that are there for types only.
    """
    source = _file(root, module)
    assert source is not None
    package = module.split(".") if source.name == "__init__.py" else module.split(".")[:-1]
    found = []
    tree = ast.parse(source.read_text())
    for_types = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    skipped = {id(node) for block in for_types for node in ast.walk(block)} if at_run_time else set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import) and any(_file(root, alias.name) for alias in node.names):
            raise UsageError(f"{source}:{node.lineno}: write `from ... import` so that it can be made relative")
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            target = ".".join([*base, *([node.module] if node.module else [])])
            if _file(root, target) is not None:
                found.append((node, target))
    return found


def _new_name(module: str, home: str) -> str:
    """Where a module of this repository is, seen from the bundle."""
    return module.removeprefix(home) if module.startswith(home) else module.removeprefix("submissions.")


def _place(module: str, home: str, is_package: bool) -> str:
    return _new_name(module, home).replace(".", "/") + ("/__init__.py" if is_package else ".py")


def _rewritten(root: Path, module: str, home: str) -> str:
    source = _file(root, module)
    assert source is not None
    lines = source.read_text().splitlines(keepends=True)
    depth = _place(module, home, source.name == "__init__.py").count("/")
    for node, target in _imports(root, module):
        old = "." * node.level + (node.module or "")
        new = "." * (depth + 1) + _new_name(target, home)
        index = node.lineno - 1
        lines[index] = re.sub(rf"from {re.escape(old)} import", f"from {new} import", lines[index], count=1)
    return "".join(lines)

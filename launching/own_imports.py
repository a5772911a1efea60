"""Imports within the folder of a submission: by relative names, so that the folder can be put anywhere."""

import ast
import importlib.machinery
import re
import sys
from pathlib import Path

from weight_averaging.errors import UsageError

HOME = "submissions"  # the benchmark's repository has them in there, and so has this one


def relative(text: str, path: Path, folder: Path) -> str:
    """The text of a module, with relative names where it imports modules of its submission by absolute ones.

    An absolute name may begin beside the module or above it in the folder (`optimizers.shampoo`). Or it leads there
    from the place where its author had the folder (`submissions.self_tuning.theirs.optimizers.shampoo`). What is
    installed under its first name is left.

    Args:
        path: of the module, in `folder` or below.
        folder: of the submission.
    Raises:
        UsageError: such an import cannot be made relative.
    """
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return text  # of a module that nothing can import
    lines = text.splitlines(keepends=True)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found = [new for name in names if (new := _relative_name(name, path, folder))]
        if not found:
            continue
        line = changed = lines[node.lineno - 1]
        if isinstance(node, ast.ImportFrom):
            changed = re.sub(rf"from\s+{re.escape(names[0])}\s+import", f"from {found[0]} import", line, count=1)
        elif len(names) == 1 and "." not in names[0]:
            changed = re.sub(r"\bimport\s", f"from {found[0].removesuffix(names[0])} import ", line, count=1)
        if changed == line:
            dots = found[0][: len(found[0]) - len(found[0].lstrip("."))]
            name = found[0].removeprefix(dots)
            raise UsageError(
                f"{path}:{node.lineno} imports {name} by its name alone: write `from {dots} import {name}`"
            )
        lines[node.lineno - 1] = changed
    return "".join(lines)


def _relative_name(name: str, path: Path, folder: Path) -> str | None:
    """Of what an absolute name means to a module; None if that is not in the folder."""
    parts, own = name.split("."), folder.resolve().name
    at_home = parts[0] == HOME
    if not at_home and _installed(parts[0], folder):
        return None
    depth = len(path.relative_to(folder).parts)
    places = {path.parents[up]: "." * (up + 1) for up in range(depth)}  # from beside the module up to the folder
    for start in range(len(parts)):
        if at_home and (not start or parts[start - 1] != own):
            continue
        for place, dots in places.items() if not start else [(folder, "." * depth)]:
            target = place.joinpath(*parts[start:])
            module = target.with_suffix(".py")
            if (module.is_file() and module != path) or (target.is_dir() and any(target.rglob("*.py"))):
                return dots + ".".join(parts[start:])
    return "." * depth if parts[-1] == own else None


def _installed(name: str, folder: Path) -> bool:
    """Whether Python finds a package of this name elsewhere: the harness would take that one."""
    if name in sys.stdlib_module_names:
        return True
    found = importlib.machinery.PathFinder.find_spec(name)  # whatever has been imported here meanwhile
    places = [] if found is None else [found.origin, *(found.submodule_search_locations or [])]
    return any(place is not None and not Path(place).resolve().is_relative_to(folder.resolve()) for place in places)

"""What belongs to one framework needs no other, and what belongs to none needs none."""

import subprocess
import sys
from pathlib import Path

DATA = sorted(".".join(path.with_suffix("").parts) for path in Path("miniperf/workloads").rglob("data.py"))
FRAMEWORKS = ["torch", "jax", "flax", "optax"]


BLOCKED = """
import sys


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}: blocked", name=name)


sys.meta_path.insert(0, Blocked())
"""


def imports_without(missing: list[str], modules: list[str]) -> None:
    """Import the modules in a process in which the missing ones cannot be."""
    code = BLOCKED + f"import {', '.join(modules)}"
    result = subprocess.run([sys.executable, "-c", code, ",".join(missing)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_data_of_the_miniatures_needs_no_framework():
    assert len(DATA) >= 7
    imports_without(FRAMEWORKS, DATA)


def test_the_recipe_itself_needs_no_framework():
    modules = [f"submissions.recipe.{path.stem}" for path in Path("submissions/recipe").glob("*.py")]
    imports_without(FRAMEWORKS, ["submissions.api", *modules])

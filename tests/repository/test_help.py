"""Help texts teach: each flag of a script is a phrase that says what it is."""

import ast
import re
from pathlib import Path

import pytest

from tests.support import ROOT

NO_PHRASE = re.compile(r"(Of|Its|With|Where|Which|Default|Instead|Only|These|The first so many)\b")
FILES = [*sorted((ROOT / "scripts").rglob("*.py")), ROOT / "miniperf" / "submission_runner.py"]


def helps(path: Path) -> dict[str, str]:
    """The help of each of absl's flags that a file defines, by name; parts of f-strings are joined without values."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.startswith("DEFINE_"):
            name, *_, text = node.args
            values = text.values if isinstance(text, ast.JoinedStr) else [text]
            found[ast.literal_eval(name)] = "".join(v.value if isinstance(v, ast.Constant) else "X" for v in values)
    return found


@pytest.mark.parametrize("path", [path for path in FILES if helps(path)], ids=lambda path: path.stem)
def test_the_help_of_every_flag_is_a_phrase(path):
    for name, text in helps(path).items():
        assert not NO_PHRASE.match(text), f"--{name}: {text}"
        assert re.match("[A-Z]", text), f"--{name}: {text}"
        assert text.endswith("."), f"--{name}: {text}"
        assert len(text.split()) >= 3, f"--{name}: {text}"

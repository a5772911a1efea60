"""Imports of a submission's own modules by absolute names, made relative."""

import importlib
import sys

import pytest

from launching import average_submission, own_imports
from tests.launching.test_average_submission import THEIRS, theirs  # noqa: F401
from tests.support import ROOT
from weight_averaging.errors import UsageError

IMPORTS = {
    "from submissions.self_tuning.theirs.parts.rates import RATE": "from .parts.rates import RATE",
    "from submissions.self_tuning.theirs.parts import rates": "from .parts import rates",
    "from submissions.self_tuning.theirs import beside": "from . import beside",
    "from leaderboard.of_team_3.parts.rates import (": "from .parts.rates import (",  # a place that is not here
    "from parts.rates import RATE": "from .parts.rates import RATE",
    "import beside": "from . import beside",
    "import beside as b": "from . import beside as b",
}
LEFT = (
    "from torch.optim.beside import Optimizer",  # what is installed is not this folder's, whatever its end
    "from torch.optim.theirs.beside import Optimizer",
    "from torch.optim.theirs import Optimizer",
    "from submissions.recipe.beside import recipe",
    "import numpy",
    "import time",
    "from . import beside",
    "from elsewhere.rates import RATE",
)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "theirs"
    (made / "parts").mkdir(parents=True)
    for name in ("parts/rates.py", "parts/more.py", "beside.py", "numpy.py", "time.py", "submission.py"):
        (made / name).write_text("RATE = 0.1\n")
    return made


@pytest.mark.parametrize("line", IMPORTS)
def test_its_own_are_made_relative(folder, line):
    text = f"import torch\n\n{line}\n" + ("    RATE,\n)\n" if line.endswith("(") else "")
    assert own_imports.relative(text, folder / "submission.py", folder) == text.replace(line, IMPORTS[line])


@pytest.mark.parametrize("line", LEFT)
def test_others_are_left(folder, line):
    assert own_imports.relative(line, folder / "submission.py", folder) == line


def test_from_deeper_in_the_folder(folder):
    text = "from theirs.beside import RATE\nfrom rates import RATE\n    # the end"
    expected = "from ..beside import RATE\nfrom .rates import RATE\n    # the end"
    assert own_imports.relative(text, folder / "parts" / "more.py", folder) == expected


@pytest.mark.parametrize("line", ["import parts.rates", "import os, beside", "from parts.rates \\\n    import RATE"])
def test_what_cannot_be_rewritten_is_one_line(folder, line):
    with pytest.raises(UsageError, match=r"submission\.py:1 imports \S+ by its name alone: write `from \. import"):
        own_imports.relative(line, folder / "submission.py", folder)


def test_an_averaged_submission_finds_them(tmp_path, theirs, monkeypatch):  # noqa: F811
    (theirs / "rates.py").write_text("from submissions.self_tuning.theirs.more import RATE\n")
    (theirs / "more.py").write_text("RATE = 0.1\n")
    (theirs / "submission.py").write_text(
        THEIRS.replace("import torch\n", "import torch\nfrom submissions.self_tuning.theirs import rates\n", 1)
    )
    base = average_submission.read(theirs / "submission.py")
    average_submission.write(ROOT, base, "lawa", {}, None, tmp_path / "made", {})
    changed = average_submission.changed(base, tmp_path / "made")
    assert [path.name for path in changed] == ["rates.py", "submission.py"]
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "algoperf", importlib.import_module("miniperf"))
    assert importlib.import_module("made.base.submission").rates.RATE == 0.1
    assert (theirs / "rates.py").read_text() == "from submissions.self_tuning.theirs.more import RATE\n"

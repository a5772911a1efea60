"""The notebooks of examples/, run as a reader would run them, and what they were saved with."""

import re

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def printed(notebook) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_prints_and_draws_as_it_was_saved(path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    saved = nbformat.read(path, as_version=4)
    nbformat.validate(saved)
    run = nbformat.read(path, as_version=4)
    NotebookClient(run, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    drawn = [[sorted(output.get("data", {})) for output in cell.get("outputs", [])] for cell in run.cells]
    assert drawn == [[sorted(output.get("data", {})) for output in cell.get("outputs", [])] for cell in saved.cells]
    before, now = printed(saved), printed(run)
    number = r"\d+\.\d+"
    assert re.sub(number, "", before) == re.sub(number, "", now)
    # Another processor rounds otherwise, and a run of 2,000 updates shows it.
    assert [float(x) for x in re.findall(number, now)] == pytest.approx(
        [float(x) for x in re.findall(number, before)], rel=0.1
    )


def test_the_first_average_is_better_than_the_latest_weights():
    text = printed(nbformat.read(ROOT / "examples" / "first_average.ipynb", as_version=4))
    latest, average = (float(x) for x in re.findall(r"\d+\.\d+", text))
    assert average < latest

"""A bundle works alone, where the benchmark puts it, and trains as the original does."""

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launching import bundle, check_code, check_space
from miniperf.errors import UsageError

ROOT = Path.cwd()
NAMES = ["nadamw", "nadamw_no_decay", "lawa", "lawa_no_decay", "ema", "ema_no_decay"]
TRAJECTORY = """
import sys
from tests.official_driver import trajectory
print(trajectory(sys.argv[1], "mnist", 4)[1:])
assert bool({"submissions", "weight_averaging", "miniperf"} & set(sys.modules)) == (sys.argv[2] == "original")
"""


def write(name: str, folder: Path) -> list[Path]:
    return bundle.write(ROOT, f"pytorch/{name}", ROOT / f"tuning_search_spaces/{name}.json", folder)


@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_is_whole_and_has_nothing_to_mend(name, tmp_path):
    files = {str(path.relative_to(tmp_path / name)) for path in write(name, tmp_path / name)}
    assert {"submission.py", "__init__.py", "tuning_search_space.json", "requirements.txt", "LICENSE"} <= files
    assert check_code.check(tmp_path / name / "submission.py") == []
    assert check_space.check(tmp_path / name / "tuning_search_space.json") == []
    # Every relative import ends inside the bundle, at a module that is there.
    for path in (tmp_path / name).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                target = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
                assert target.with_suffix(".py").is_file() or (target / "__init__.py").is_file()
                assert (tmp_path / name) in target.parents


@pytest.mark.skipif(importlib.util.find_spec("algoperf") is None, reason="algoperf is not installed")
def test_a_bundle_trains_as_the_original(tmp_path):
    package = "submissions_algorithms.submissions.external_tuning.lawa"
    write("lawa", tmp_path.joinpath(*package.split(".")))
    (tmp_path / "tests").mkdir()
    for name in ("official_driver.py", "official_batches.py"):
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests")
    outputs = []
    for folder, module, which in ((ROOT, "lawa", "original"), (tmp_path, f"{package}.submission", "bundle")):
        environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-P", "-c", TRAJECTORY, module, which]
        result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
        assert result.returncode == 0, result.stderr[-2000:]
        outputs.append(result.stdout)
    assert outputs[0] == outputs[1]


def test_an_import_that_cannot_be_made_relative_is_refused(tmp_path):
    (tmp_path / "submissions" / "mine").mkdir(parents=True)
    (tmp_path / "lib.py").touch()
    (tmp_path / "submissions" / "mine" / "submission.py").write_text("import lib\n")
    with pytest.raises(UsageError, match=r"submission\.py:1: write `from"):
        bundle.write(tmp_path, "mine", None, tmp_path / "out")


def test_a_folder_is_not_written_over(tmp_path):
    with pytest.raises(UsageError, match="exists"):
        write("lawa", tmp_path)


def test_the_pull_request_has_one_line_a_field():
    fields = {"submission_name": "mine", "authors": "A. Name, B. Name", "affiliations": "Some: Place"}
    block = bundle.pull_request(fields).split("```")[1].splitlines()[1:]
    assert block == ["submission_name: mine", "authors: A. Name, B. Name", 'affiliations: "Some: Place"']
    for bad in ("", "a # b", "a\nb"):
        with pytest.raises(UsageError, match="authors"):
            bundle.pull_request({**fields, "authors": bad})

"""`python -m benchmarks.gpu` runs to its end here too, small."""

import math
import os
import re
import subprocess
import sys

import pytest
import torch

from benchmarks.gpu.__main__ import marked
from tests.support.warm_python import python


def run(*arguments):
    return subprocess.run(
        [python(), "-m", "benchmarks.gpu", *arguments], capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_every_section_has_a_table_of_finite_numbers(tmp_path):
    sections = "updates,kernels,step,overlap,swap,memory,growth,blocks,nadamw,criteo"
    done = run(f"--out={tmp_path}", "--small", f"--sections={sections}")
    assert done.returncode == 0, done.stderr[-3000:]
    (page,) = tmp_path.glob("*.md")
    assert done.stdout.splitlines()[-1] == f"written: {page}"
    (picture,) = tmp_path.glob("*_overlap.png")
    assert picture.stat().st_size > 5000
    head, *parts = re.split(r"^## ", page.read_text(), flags=re.M)
    assert "The numbers mean nothing" in head
    assert len(parts) == len(sections.split(","))
    for part in parts:
        assert "failed" not in part, part
        cells = [c.strip() for line in part.splitlines() if line.startswith("|") for c in line.strip("|").split("|")]
        numbers = [float(cell) for cell in cells if re.fullmatch(r"-?[\d.]+|nan|inf", cell)]
        assert numbers or part.startswith("Copies beside"), part
        assert all(math.isfinite(number) for number in numbers)
    again = run(f"--out={tmp_path}", "--small", "--sections=criteo")
    assert again.returncode == 0, again.stderr[-3000:]
    assert page.read_text().split("## A window")[0] == "## ".join([head, *parts]).split("## A window")[0]


def test_only_files_with_the_marker_are_taken():
    """A Python with torch alone cannot import the others."""
    names = [os.path.relpath(path) for path in marked()]
    assert "tests/weight_averaging/torch/memory/test_gpu.py" in names
    command = [python(), "-m", "pytest", "-m", "gpu", "--collect-only", "-q", "-n", "0", "-p", "no:cacheprovider"]
    listed = subprocess.run([*command, "tests/weight_averaging/torch"], capture_output=True, text=True, check=False)
    found = {line.split(":")[0] for line in listed.stdout.splitlines() if line.startswith("tests")}
    assert found == set(names), listed.stdout + listed.stderr


def test_skipped_tests_are_not_said_to_have_passed(tmp_path):
    done = run(f"--out={tmp_path}", "--small", "--sections=tests")
    assert done.returncode == 0, done.stderr[-3000:]
    (page,) = tmp_path.glob("*.md")
    counted = "passed" if torch.cuda.is_available() else "skipped"
    assert re.search(rf"`pytest -m gpu`: \d+ {counted}", page.read_text())


def test_a_failed_section_leaves_the_others(tmp_path):
    broken = tmp_path / "sitecustomize.py"
    broken.write_text(
        "import benchmarks.gpu.updates as u\ndef no(scale):\n    raise OSError('no\\nway')\nu.swap = no\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", f"--out={tmp_path}", "--small", "--sections=swap,growth"],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.getcwd()}", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 1
    (page,) = tmp_path.glob("*.md")
    assert "failed: OSError: no way" in page.read_text()
    assert "LAWA, host" in page.read_text()


@pytest.mark.parametrize("wrong", ["--sections=swapp"])
def test_an_unknown_section_is_named(wrong):
    done = run(wrong)
    assert done.returncode == 2
    assert "--sections=swapp: there are tests,updates," in done.stderr.splitlines()[-1]

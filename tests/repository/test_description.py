"""The description on the package index: README, whose links are absolute once the repository has an address."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import weight_averaging
from setup import RELATIVE, absolute
from tests.support import ROOT

URL = "https://example.org/me/averaging"
README = (ROOT / "README.md").read_text()


def test_every_link_becomes_absolute_and_leads_to_a_file():
    made = absolute(README, URL, "1.2")
    assert not RELATIVE.search(made)
    assert made.count(f"]({URL}/raw/v1.2/") == len(re.findall(r"^!\[", README, re.M)) > 0
    for view, path in re.findall(rf"\]\({URL}/(raw|blob)/v1\.2/([^)]+)\)", made):
        assert (ROOT / path.partition("#")[0]).exists(), path
        assert (view == "raw") == path.endswith(".png")
    assert re.findall(r"\(https://arxiv[^)]*\)", made) == re.findall(r"\(https://arxiv[^)]*\)", README)
    assert absolute(made, URL, "1.2") == made


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("[a](b.md), [c](#d), [e](mailto:f)", f"[a]({URL}/blob/v3/b.md), [c](#d), [e](mailto:f)"),
        ("![p](q.png) [x] (y)", f"![p]({URL}/raw/v3/q.png) [x] (y)"),
    ],
)
def test_links_of_markdown(text, made):
    assert absolute(text, URL, "3") == made


def metadata(folder: Path, **environment: str) -> str:
    """What a build says of the package, from a copy of what it reads."""
    for name in ("README.md", "setup.cfg", "setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    (folder / "weight_averaging").mkdir()
    (folder / "weight_averaging" / "__init__.py").write_text(f'__version__ = "{weight_averaging.__version__}"\n')
    code = "from setuptools import build_meta; print(build_meta.prepare_metadata_for_build_wheel('out'))"
    (folder / "out").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (found,) = folder.glob("out/*.dist-info/METADATA")
    return found.read_text()


def test_a_build_with_the_address_has_it_and_one_without_has_readme_as_it_is(tmp_path):
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
    text = metadata(tmp_path / "with", WEIGHT_AVERAGING_URL=f"{URL}/")
    assert f"Project-URL: Source, {URL}\n" in text
    assert absolute(README, URL, weight_averaging.__version__).strip() in text
    text = metadata(tmp_path / "without", WEIGHT_AVERAGING_URL="")
    assert URL not in text
    assert README.strip() in text

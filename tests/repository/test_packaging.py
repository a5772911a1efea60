"""The wheel: what is in it, and that it works beside torch alone, jax alone or neither, as a stranger installs it."""

import configparser
import importlib.metadata
import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import weight_averaging
from tests.support import ROOT

WITH_TORCH = """
import importlib.util, sys
import weight_averaging
assert {"EMA", "LAWA", "suggest"} <= set(dir(weight_averaging))
assert "torch" not in sys.modules, "import weight_averaging needs no framework, nor does completion"
import pydoc
assert "class LAWA(" in pydoc.render_doc(weight_averaging, renderer=pydoc.plaintext)
assert weight_averaging.suggest(3000).interval == 6
from weight_averaging import EMA, LAWA
import torch
assert {name for name in sys.modules if "." not in name}.isdisjoint({"absl", "jax", "miniperf", "submissions"})
assert importlib.util.find_spec("jax") is importlib.util.find_spec("lightning") is None
model = torch.nn.Linear(2, 1)
lawa, ema = LAWA(model, interval=1, window=3), EMA(model, decay=0.5)
for step in range(1, 5):
    torch.nn.init.constant_(model.weight, float(step))
    assert lawa.update(step) and ema.update(step)
with lawa.averaged():
    assert model.weight.tolist() == [[3.0, 3.0]]
    torch.save(model.state_dict(), "average.pt")
again = LAWA(model, interval=1, window=3)
again.load_state_dict(lawa.state_dict())
from weight_averaging import offline
plan = offline.Plan([(offline.LAWA(window=2), 2)], steps=[1, 2])
(result,) = plan.run((step, {"weight": torch.full((2,), float(step))}) for step in plan.needed)
assert result.state["weight"].tolist() == [1.5, 1.5]
try:
    import weight_averaging.trainers.lightning
except ModuleNotFoundError as error:
    assert error.name == "lightning"
print(weight_averaging.__version__)
"""
WITH_JAX = """
import pydoc
import weight_averaging
assert "suggest(" in pydoc.render_doc(weight_averaging, renderer=pydoc.plaintext)
from weight_averaging.jax import lawa
import jax.numpy as jnp
averager = lawa(interval=1, window=2)
state = averager.init({"w": jnp.zeros(2)})
for step in (1, 2, 3):
    state = averager.update(state, {"w": jnp.full(2, float(step))}, step)
assert averager.average(state, {"w": jnp.zeros(2)})["w"].tolist() == [2.5, 2.5]
try:
    from weight_averaging import LAWA
except ImportError as error:
    assert "torch is not installed here" in str(error)
else:
    raise AssertionError("there is a torch")
print(weight_averaging.__version__)
"""
WITH_NEITHER = """
import importlib.util
import weight_averaging
from weight_averaging import averages
assert importlib.util.find_spec("torch") is importlib.util.find_spec("jax") is importlib.util.find_spec("numpy") is None
assert weight_averaging.suggest(3000).interval == 6
lawa = averages.LAWA(window=2, interval=2)
assert (lawa.members([2, 3, 4, 6], 6), lawa.coefficients(2)) == ([4, 6], [0.5, 0.5])
print(weight_averaging.__version__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from the source distribution, as a release is, with nothing fetched."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    check = [sys.executable, "-m", "twine", "check", "--strict", *map(str, out.iterdir())]
    checked = subprocess.run(check, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    (found,) = out.glob("*.whl")
    return found


def test_the_wheel_holds_the_library_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"weight_averaging", f"weight_averaging-{weight_averaging.__version__}.dist-info"}
    packaged = {name for name in names if name.startswith("weight_averaging/")}
    source = {str(p.relative_to(ROOT)) for p in (ROOT / "weight_averaging").rglob("*.py")}
    assert packaged == source | {"weight_averaging/py.typed"}
    metadata = next(name for name in names if name.endswith("METADATA"))
    text = zipfile.ZipFile(wheel).read(metadata).decode()
    needed = [line for line in re.findall(r"^Requires-Dist: (.*)$", text, re.M) if "extra" not in line]
    assert needed == [], "the library itself needs nothing: the extras say what is beside it"
    assert f"Version: {weight_averaging.__version__}" in text


def test_the_changelog_has_the_version():
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == weight_averaging.__version__


def closure(name: str) -> set[str]:
    """An installed distribution and all that it needs."""
    found: set[str] = set()
    wanted = [name]
    while wanted:
        name = re.sub(r"[-_.]+", "-", wanted.pop()).lower()
        if name in found:
            continue
        found.add(name)
        needs = [Requirement(text) for text in importlib.metadata.requires(name) or ()]
        wanted += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


def bare_environment(folder: Path, framework: str | None, wheel: Path) -> Path:
    """The interpreter of a virtual environment that has a framework, what that needs, the wheel, and nothing else.

    The framework is linked, not copied: its files are hundreds of megabytes.
    """
    venv.create(folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in closure(framework) if framework else ():
        for file in importlib.metadata.files(name) or ():
            top, target = packages / file.parts[0], Path(str(file.locate())).parents[len(file.parts) - 2]
            if file.parts[0] != ".." and not top.exists() and not top.is_symlink():
                top.symlink_to(target if len(file.parts) > 1 else Path(str(file.locate())))
    zipfile.ZipFile(wheel).extractall(packages)
    return folder / "bin" / "python"


@pytest.mark.parametrize(
    ("framework", "program"),
    [("torch", WITH_TORCH), ("jax", WITH_JAX), (None, WITH_NEITHER)],
    ids=["torch", "jax", "neither"],
)
def test_it_works_beside_one_framework_alone_or_none(tmp_path, wheel, framework, program):
    if framework:
        pytest.importorskip(framework)
    python = bare_environment(tmp_path / "venv", framework, wheel)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [str(python), "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == weight_averaging.__version__
    if framework != "jax":
        command = [str(python), "-m", "weight_averaging", "--help"]
        helped = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert "weight-averaging average" in helped.stdout, helped.stderr[-3000:]


def test_all_that_setup_cfg_asks_for_is_pinned():
    """But for PyTorch, which is chosen by the machine."""
    lines = (ROOT / "requirements/constraints.txt").read_text().splitlines()
    pins = {need.name: need for need in map(Requirement, lines[1:])}
    settings = configparser.ConfigParser(inline_comment_prefixes=("#",))
    settings.read(ROOT / "setup.cfg")
    extras = settings["options.extras_require"].values()
    asked = [Requirement(line) for text in extras for line in text.splitlines() if line]
    assert len(asked) > 50
    for need in asked:
        if need.name != "torch":
            (pin,) = pins[canonicalize_name(need.name)].specifier
            assert need.specifier.contains(pin.version), f"{need}, {pin}: run make lock"


@pytest.mark.heavy
def test_it_works_where_a_stranger_installs_it(tmp_path, wheel):
    """From the index, with the torch that the tests run with; docs/release.md has the session."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    torch = f"torch=={importlib.metadata.version('torch').split('+')[0]}"
    subprocess.run([python, "-m", "pip", "install", "--quiet", torch, str(wheel)], check=True, cwd=tmp_path)
    done = subprocess.run([python, "-c", WITH_TORCH], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == weight_averaging.__version__

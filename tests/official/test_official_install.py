"""What the documented commands install is what the harness's workloads import, at its pins."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launching import official

HARNESS = "https://github.com/mlcommons/algorithmic-efficiency"
# By distribution: the harness's pins, what its extras add for the workloads, and what it forgets (None: any version).
NEEDED = {
    "absl-py": "2.1.0", "chex": "0.1.86", "clu": "0.0.12", "datasets": "3.6.0", "flax": "0.10.7", "h5py": "3.12.0",
    "importlib-resources": None, "jax": "0.7.0", "jraph": "0.0.6.dev0", "ml-dtypes": "0.5.1", "optax": "0.2.2",
    "orbax-checkpoint": "0.11.20", "protobuf": "4.25.5", "pydub": "0.25.1", "scikit-image": "0.24.0",
    "scikit-learn": "1.5.2", "sentencepiece": "0.2.0", "tensorflow": "2.19.0", "tensorflow-datasets": "4.9.9",
    "tensorflow-metadata": "1.16.1", "tensorflow-text": "2.19.0", "torch": "2.9.0", "torchvision": "0.24.0",
    "transformers": "4.26.0", "wandb": "0.21.0",
}  # fmt: skip
BY_EXTRA = {
    "official": {},
    "official-jax": {"jax-cuda12-plugin": "0.7.0", "nvidia-cudnn-cu12": "9.10.2.21"},
}  # fmt: skip
IMPORT_ALL = """
import importlib, sys
from tests.processes import official_driver  # declares what torchvision misses beside a CPU build of torch
failed = []
for path in sorted({entry["workload_path"] for entry in official_driver.WORKLOADS.values()}):
    module = f"algoperf.workloads.{path.replace('/', '.')}_{sys.argv[1]}.workload"
    try:
        importlib.import_module(module)
    except ImportError as error:
        failed.append(f"{module}: {error}")
print(*failed, sep="\\n", file=sys.stderr)
sys.exit(bool(failed))
"""


def documented(extra: str) -> list[str]:
    """The words of the command in docs/official.md."""
    lines = [line.strip() for line in Path("docs/official.md").read_text().splitlines()]
    (command,) = [line for line in lines if line.startswith(f"pip install -e . -r requirements/{extra}.txt ")]
    return shlex.split(command)


def missing(installed: dict[str, str], extra: str) -> list[str]:
    needed = {**NEEDED, **BY_EXTRA[extra]}
    return [
        f"{name}{f'=={version}' if version else ''} (there is {installed.get(name, 'none')})"
        for name, version in needed.items()
        if name not in installed or version not in (None, installed[name])
    ]


def test_what_is_missing_is_named():
    installed = {name: version or "1.0" for name, version in {**NEEDED, **BY_EXTRA["official"]}.items()}
    assert missing(installed, "official") == []
    del installed["jraph"]
    assert missing({**installed, "jax": "0.10.0"}, "official") == [
        "jax==0.7.0 (there is 0.10.0)", "jraph==0.0.6.dev0 (there is none)",
    ]  # fmt: skip


@pytest.mark.heavy
@pytest.mark.parametrize("extra", BY_EXTRA)
def test_the_documented_command_resolves_to_what_the_workloads_need(extra, tmp_path):
    reach = ["git", "ls-remote", "--exit-code", HARNESS, "HEAD"]
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    if subprocess.run(["timeout", "20", *reach], env=environment, capture_output=True, check=False).returncode:
        pytest.skip("the harness's repository cannot be reached")
    command = [sys.executable, "-m", *documented(extra), "--dry-run", "--ignore-installed", "--quiet"]
    report = tmp_path / "report.json"
    result = subprocess.run([*command, f"--report={report}"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    entries = [entry["metadata"] for entry in json.loads(report.read_text())["install"]]
    installed = {re.sub(r"[-_.]+", "-", entry["name"]).lower(): entry["version"] for entry in entries}
    assert not missing(installed, extra), f"missing: {', '.join(missing(installed, extra))}"


@pytest.mark.skipif(importlib.util.find_spec("algoperf") is None, reason="algoperf is not installed")
@pytest.mark.parametrize("framework", ["pytorch", "jax"])
def test_every_workload_of_the_installed_harness_imports(framework):
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", IMPORT_ALL, framework]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr[-3000:]


def test_requirements_docs_and_image_agree():
    lines = Path("requirements/official.txt").read_text().splitlines()
    harness, *rest = [line.split("  #")[0] for line in lines if not line.startswith("#")]
    found = re.fullmatch(rf"algoperf\[(.*)\] @ git\+{HARNESS}@([0-9a-f]{{40}})", harness)
    assert found
    assert "_" not in found[1], "pip before 23.3 drops such an extra in silence"
    dockerfile = Path("docker/Dockerfile").read_text()
    assert f"ARG HARNESS_COMMIT={found[2]}\n" in dockerfile
    assert found[2] == official.COMMIT
    for requirement in rest:
        assert requirement in dockerfile
    for requirement in documented("official")[-2:]:
        assert f'="{requirement}"\n' in dockerfile
    assert documented("official")[-2:] == documented("official-jax")[-2:]


def test_the_image_is_given_the_files_that_its_recipe_names():
    let_in = {line[1:] for line in Path(".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert all(Path(name).exists() for name in let_in)
    named = re.findall(r"-r (\S+)", Path("docker/Dockerfile").read_text())
    packages = {path.parent.name for path in Path().glob("[a-z]*/__init__.py")}
    assert {Path(name).parts[0] for name in named} | packages <= let_in

"""What docs/loops.md, docs/trainers.md and docs/first_hour.md print, and the examples, run as they are."""

import functools
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch

from tests.support import ROOT
from tests.support.warm_python import python


def blocks(page: str) -> list[tuple[str, str]]:
    """The python blocks of a page with the heading that each is under."""
    found, heading = [], ""
    for match in re.finditer(r"^## ([^\n]*)$|^```python\n(.*?)^```$", (ROOT / "docs" / page).read_text(), re.M | re.S):
        heading = match[1] or heading
        if match[2]:
            found.append((heading, match[2]))
    return found


def run(program: str, folder: Path, *launcher: str) -> str:
    (folder / "program.py").write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command, pipes = [python(), *launcher, "program.py"], {"capture_output": True, "text": True}
    done = subprocess.run(command, cwd=folder, env=environment, **pipes, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def test_loops(tmp_path, monkeypatch):
    """One after the other in one program; what another process is to run in another one."""
    monkeypatch.chdir(tmp_path)
    # Compiling for real takes longer than all else here and needs a C++ compiler.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    (_, common), *rest = blocks("loops.md")
    headings = {heading for heading, _ in rest}
    assert {"Gradient accumulation", "torch.compile", "FSDP2", "Several models (GAN)"} <= headings
    names: dict = {}
    exec(common, names)
    elsewhere = [block for _, block in rest if block.startswith("# evaluate.py")]
    ranks = [block for _, block in rest if block.startswith("# torchrun")]
    for heading, block in rest:
        if block not in [*elsewhere, *ranks]:
            exec(compile(block, heading, "exec"), names)
    (evaluating,) = elsewhere
    assert "average_3.pt" in run(common + evaluating, tmp_path)
    assert len(ranks) == 2
    if hasattr(torch.distributed.fsdp, "fully_shard"):  # not yet in torch 2.5
        run("\n".join([common, "import copy", *ranks]), tmp_path, *TWO)


def test_trainers(tmp_path):
    pytest.importorskip("lightning")
    pytest.importorskip("transformers")
    run("\n".join(block for _, block in blocks("trainers.md")), tmp_path)
    assert (tmp_path / "averaged" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "checkpoint-16" / "weight_averaging.pt").is_file()


def test_examples(tmp_path):
    pytest.importorskip("sklearn")
    images = run((ROOT / "examples" / "images.py").read_text().replace("default=1500", "default=300"), tmp_path)
    rows = [list(map(float, line.split()[1:])) for line in images.splitlines()[1:]]
    assert len(rows) == 10
    assert all(error < 0.1 for error in rows[-1])
    finetuned = run((ROOT / "examples" / "finetune.py").read_text(), tmp_path)
    before, *after = [float(line.split()[-1 if "before" not in line else 2]) for line in finetuned.splitlines()]
    assert len(after) == 5
    assert max(after) < 0.3 < before


def test_the_first_hour(tmp_path):
    """Its commands, one after the other, say the words that are printed there; digits are a machine's own."""
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    recorded = re.findall(r"^```console\n\$ (.*?)\n(.*?)^```$", (ROOT / "docs/first_hour.md").read_text(), re.M | re.S)
    assert len(recorded) == 5
    programs = {"python": [], "weight-averaging": ["-m", "weight_averaging"]}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for command, expected in recorded:
        program, *arguments = command.split()
        done = subprocess.run(
            [python(), *programs[program], *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode != 0) == ("error: " in expected), done.stderr
        digits = r"\d[\d.,]*"
        assert re.sub(digits, "0", done.stdout + done.stderr) == re.sub(digits, "0", expected)
    assert (tmp_path / "average.pt").is_file()
    assert (tmp_path / "runs" / "mine" / "horizon.png").stat().st_size > 10_000

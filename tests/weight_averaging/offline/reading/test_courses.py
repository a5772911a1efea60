"""Folders of a Trainer that was resumed from an earlier checkpoint and went on otherwise."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.support.forms import command, state_of
from weight_averaging.averages import SnapshotError
from weight_averaging.offline import Snapshots


def save(folder: Path, step: int, history: list[dict]) -> None:
    path = folder / f"checkpoint-{step}"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    save_file(state_of(step), path / "model.safetensors")
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": history}))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4), st.integers(0, 1)), min_size=1, max_size=4),
    st.integers(1, 3),
)
def test_checkpoints_of_two_courses_of_a_run_are_never_averaged(sessions, every):
    """Of each session of training: how far it went back, how far it went on, and which losses it had."""
    with tempfile.TemporaryDirectory() as name:
        folder, on_disk = Path(name), {}  # step -> the losses up to there
        history: list[dict] = []
        for number, (back, length, loss) in enumerate(sessions):
            left = [step for step in on_disk if step <= len(history) - back]
            history = list(on_disk[max(left)]) if left else []
            for step in range(len(history) + 1, len(history) + every * length + 1):
                value = float("nan") if loss else step
                history.append({"step": step, "loss": value, "eval_runtime": float(number)})
                if step % every == 0:
                    on_disk[step] = list(history)
                    save(folder, step, history)
        losses = {step: str([entry["loss"] for entry in log]) for step, log in on_disk.items()}
        one = all(losses[max(losses)].startswith(log[:-1]) for log in losses.values())
        if one:
            assert Snapshots(folder).steps == sorted(on_disk)
        else:
            with pytest.raises(SnapshotError, match="is of another course of the run than checkpoint-"):
                Snapshots(folder)
        assert Snapshots([folder / f"checkpoint-{step}" for step in on_disk]).steps == sorted(on_disk)


def test_the_command_says_what_to_do(tmp_path, capsys):
    save(tmp_path, 10, [{"step": 10, "loss": 1.0}])
    save(tmp_path, 30, [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 0.9}, {"step": 30, "loss": 9.0}])
    save(tmp_path, 20, [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 0.8}])
    said = command(capsys, "average", tmp_path, "--lawa=window=2", f"--out={tmp_path / 'out'}")
    assert "checkpoint-30 is of another course of the run than checkpoint-20: its log differs from that. " in said
    files = [tmp_path / "checkpoint-10", tmp_path / "checkpoint-20"]
    assert "load: " in command(capsys, "average", *files, "--lawa=window=2", f"--out={tmp_path / 'out'}")

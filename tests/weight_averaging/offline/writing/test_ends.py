"""What ends an average of many pieces: a bad snapshot, Ctrl-C, a kill. Nothing is left that looks finished."""

import gc
import logging
import os
import signal

import pytest
import torch
from safetensors.torch import save_file

from tests.support.killing import die, in_a_process
from tests.weight_averaging.offline.test_pieces import in_pieces
from weight_averaging.averages import LAWA, SnapshotError
from weight_averaging.offline import Plan, Snapshots, latest_of
from weight_averaging.offline.writing import to_files


@pytest.fixture
def small(monkeypatch):
    in_pieces(monkeypatch)


def average(folder, out, wanted, suffix, on_read=lambda count: None):
    out.mkdir(exist_ok=True)
    snapshots = Snapshots(folder)
    plan = Plan(wanted, snapshots.steps, latest=latest_of(snapshots.layout), frozen=snapshots.frozen)
    outputs = {pair: out / f"{number}{suffix}" for number, pair in enumerate(wanted)}
    to_files.average_to_files(snapshots, plan, outputs, 10**9, on_read)
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def run_of(folder, tensors=40, numel=50):
    folder.mkdir()
    for step in (1, 2, 3):
        state = {f"t{i}": torch.full((numel,), float(step + i)) for i in range(tensors)}
        save_file(state, folder / f"step_{step}.safetensors")


def test_a_bad_snapshot_leaves_nothing(tmp_path, small):
    run_of(tmp_path / "run")
    bad = {f"t{i}": torch.full((50,), float("nan") if i == 1 else 1.0) for i in range(40)}
    save_file(bad, tmp_path / "run" / "step_1.safetensors")
    read: list[int] = []
    with pytest.raises(SnapshotError, match=r"^step 1: t1 holds a NaN"):
        average(tmp_path / "run", tmp_path / "out", [(LAWA(window=3), 3)], ".safetensors", read.append)
    assert not list((tmp_path / "out").iterdir())


def test_ctrl_c_leaves_nothing(tmp_path, small):
    run_of(tmp_path / "run")
    read: list[int] = []

    def interrupt(count):
        read.append(count)
        if len(read) == 20:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    gc.disable()  # JAX, if another test has imported it, has a callback of it, which swallows what is raised within
    try:
        with pytest.raises(KeyboardInterrupt):
            average(tmp_path / "run", tmp_path / "out", [(LAWA(window=3), 3)], ".safetensors", interrupt)
    finally:
        gc.enable()
        signal.signal(signal.SIGINT, before)
    assert not list((tmp_path / "out").iterdir())
    assert len(read) < 40 * 3 * 2


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_kill_between_two_pieces_leaves_nothing_that_looks_finished(tmp_path, small, suffix):
    run_of(tmp_path / "run", tensors=8)
    wanted = [(LAWA(window=3), 3)]
    read: list[int] = []
    whole = average(tmp_path / "run", tmp_path / "whole", wanted, suffix, read.append)
    for last in range(1, len(read) + 1, 5):
        seen: list[int] = []
        out = tmp_path / str(last)

        def kill(count, seen=seen, last=last):
            seen.append(count)
            if len(seen) == last:
                die()

        process = in_a_process(average, tmp_path / "run", out, wanted, suffix, kill)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert all(path.name.startswith(".partial_") for path in out.iterdir())
        again = average(tmp_path / "run", out, wanted, suffix)
        assert {name: data for name, data in again.items() if not name.startswith(".partial_")} == whole


def test_frozen_tensors_that_change_are_told_once(tmp_path, small, caplog):
    run_of(tmp_path / "run")
    snapshots = Snapshots(tmp_path / "run")
    plan = Plan([(LAWA(window=3), 3)], snapshots.steps, latest=snapshots.layout, frozen=snapshots.layout)
    with caplog.at_level(logging.WARNING, "weight_averaging"):
        out = {(LAWA(window=3), 3): tmp_path / "out.safetensors"}
        to_files.average_to_files(snapshots, plan, out, 10**9)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("40 frozen tensors change along the snapshots")

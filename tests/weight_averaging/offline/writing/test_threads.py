"""Two threads that average other tensors of one model: the same files as one, and one end for both."""

import gc
import logging
import os
import signal

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import weight_averaging.offline.passes.pieces as module
from tests.support.killing import die, in_a_process
from tests.weight_averaging.offline.test_pieces import SHAPES, TYPES, in_pieces, written
from weight_averaging.averages import EMA, LAWA, Merge, SnapshotError
from weight_averaging.offline import Plan, Snapshots, latest_of
from weight_averaging.offline.writing import to_files


@pytest.fixture
def small(monkeypatch):
    in_pieces(monkeypatch)


def average(folder, out, wanted, suffix, threads, on_read=lambda count: None):
    out.mkdir(exist_ok=True)
    snapshots = Snapshots(folder)
    plan = Plan(wanted, snapshots.steps, latest=latest_of(snapshots.layout), frozen=snapshots.frozen)
    outputs = {pair: out / f"{number}{suffix}" for number, pair in enumerate(wanted)}
    to_files.average_to_files(snapshots, plan, outputs, 10**9, on_read, threads=threads)
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@settings(max_examples=15, deadline=None)
@given(
    layout=st.lists(st.tuples(st.sampled_from(SHAPES), st.sampled_from(TYPES)), min_size=1, max_size=6),
    form=st.sampled_from(["torch", "safetensors", "parts", "old"]),
    block=st.integers(1, 9),
    size=st.integers(1, 400),
)
def test_two_threads_write_what_one_does(tmp_path_factory, layout, form, block, size):
    layout = [(shape, torch.float32 if dtype == torch.int64 and len(shape) > 1 else dtype) for shape, dtype in layout]
    assume(any(shape != (0,) for shape, _ in layout))  # weights without elements are refused
    root = tmp_path_factory.mktemp("run")
    written(root / "run", layout, form)
    wanted = [(LAWA(window=3), 4), (EMA(decay=0.5), 3), (Merge(shape="linear", share=0.5), 4)]
    with pytest.MonkeyPatch.context() as patch:
        in_pieces(patch, block, size)
        for suffix in (".safetensors", ".pt"):
            counts: dict[int, list[int]] = {1: [], 2: []}
            found = [
                average(root / "run", root / f"{suffix}{threads}", wanted, suffix, threads, counts[threads].append)
                for threads in (1, 2)
            ]
            assert found[0] == found[1]
            assert sorted(counts[1]) == sorted(counts[2])  # each byte once


@given(
    layout=st.lists(st.tuples(st.sampled_from(SHAPES), st.sampled_from(TYPES)), min_size=1, max_size=8),
    models=st.integers(1, 3),
    budget=st.integers(1, 400),
    threads=st.integers(1, 4),
)
def test_the_pieces_of_a_tensor_are_one_threads_in_their_order(layout, models, budget, threads):
    kinds = {f"t{i}": kind for i, kind in enumerate(layout)}
    with pytest.MonkeyPatch.context() as patch:
        in_pieces(patch, 2, 400)
        cut = module.groups(kinds, models, budget, cut=True)
    shares = module.dealt(cut, threads)
    assert sorted(map(id, cut)) == sorted(id(group) for share in shares for group in share)
    assert 1 <= len(shares) <= threads
    for name in kinds:
        places = [
            (number, piece.start)
            for number, share in enumerate(shares)
            for group in share
            for piece in group
            if piece.name == name
        ]
        assert places == sorted(places)
        assert len({number for number, _ in places}) == 1


def test_shares_are_about_equal():
    layout = {f"t{i}": ((2**20,), torch.float32) for i in range(40)}
    one, other = module.dealt(module.groups(layout, 2, 10**9, cut=True), 2)
    assert len(one) == len(other)


def run_of(folder, tensors=40, numel=50):
    folder.mkdir()
    for step in (1, 2, 3):
        state = {f"t{i}": torch.full((numel,), float(step + i)) for i in range(tensors)}
        save_file(state, folder / f"step_{step}.safetensors")


def test_what_ends_one_thread_ends_the_other(tmp_path, small):
    run_of(tmp_path / "run")
    bad = {f"t{i}": torch.full((50,), float("nan") if i == 1 else 1.0) for i in range(40)}
    save_file(bad, tmp_path / "run" / "step_1.safetensors")
    read: list[int] = []
    with pytest.raises(SnapshotError, match=r"^step 1: t1 holds a NaN"):
        average(tmp_path / "run", tmp_path / "out", [(LAWA(window=3), 3)], ".safetensors", 2, read.append)
    assert not list((tmp_path / "out").iterdir())


def test_ctrl_c_ends_both_and_leaves_nothing(tmp_path, small):
    run_of(tmp_path / "run")
    read: list[int] = []

    def interrupt(count):
        read.append(count)
        if len(read) == 20:
            os.kill(os.getpid(), signal.SIGINT)

    gc.disable()  # JAX, if another test has imported it, has a callback of it, which swallows what is raised within
    try:
        with pytest.raises(KeyboardInterrupt):
            average(tmp_path / "run", tmp_path / "out", [(LAWA(window=3), 3)], ".safetensors", 2, interrupt)
    finally:
        gc.enable()
    assert not list((tmp_path / "out").iterdir())
    assert len(read) < 40 * 3 * 2


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_kill_between_two_pieces_leaves_nothing_that_looks_finished(tmp_path, small, suffix):
    run_of(tmp_path / "run", tensors=8)
    wanted = [(LAWA(window=3), 3)]
    read: list[int] = []
    whole = average(tmp_path / "run", tmp_path / "whole", wanted, suffix, 2, read.append)
    for last in range(1, len(read) + 1, 5):
        seen: list[int] = []
        out = tmp_path / str(last)

        def kill(count, seen=seen, last=last):
            seen.append(count)
            if len(seen) == last:
                die()

        process = in_a_process(average, tmp_path / "run", out, wanted, suffix, 2, kill)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert all(path.name.startswith(".partial_") for path in out.iterdir())
        again = average(tmp_path / "run", out, wanted, suffix, 2)
        assert {name: data for name, data in again.items() if not name.startswith(".partial_")} == whole


def test_frozen_tensors_that_change_are_told_once(tmp_path, small, caplog):
    run_of(tmp_path / "run")
    snapshots = Snapshots(tmp_path / "run")
    plan = Plan([(LAWA(window=3), 3)], snapshots.steps, latest=snapshots.layout, frozen=snapshots.layout)
    with caplog.at_level(logging.WARNING, "weight_averaging"):
        out = {(LAWA(window=3), 3): tmp_path / "out.safetensors"}
        to_files.average_to_files(snapshots, plan, out, 10**9, threads=2)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("40 frozen tensors change along the snapshots")

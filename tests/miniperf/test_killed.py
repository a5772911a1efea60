"""A run that is killed, wherever it is, loses nothing. KILLS=50 kills as many instead of a handful."""

import collections
import dataclasses
import gc
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pandas as pd
import pytest

from analysis.reading import files
from miniperf import checkpoints
from miniperf.logs import MetricsLogger, experiment_folder
from miniperf.workloads import make
from tests.miniperf.test_runner import assert_same_end, settings_of, train, trial
from tests.support.killing import Lines, die_writing, grow_old, in_a_process, killed_at_every_change, newest
from weight_averaging.offline.recording import SnapshotWriter, read_manifest, verify
from weight_averaging.torch import Averager

pytestmark = pytest.mark.usefixtures("few_held_out_images")
WORKLOAD = type(make("mini_imagenet_vit"))


def swapped(*_: object, **__: object) -> bool:
    return any(Averager in type(thing).__mro__ and thing.swapped for thing in gc.get_objects())


# Where the process dies, at any line inside: the function, and which of its calls count.
PLACES = {
    "checkpoint": (checkpoints, "save", lambda *_: True),
    "evaluation while swapped": (WORKLOAD, "eval_model", swapped),
    "snapshot": (Averager, "update", lambda averager, step, *_: step % averager.interval == 0),
    "swap": (Averager, "swap_in", lambda *_: True),
    "row of the logs": (MetricsLogger, "append_scalar_metrics", lambda *_, **__: True),
    "snapshot file": (SnapshotWriter, "_write", lambda *_: True),
}
KINDS = [*PLACES, "half a checkpoint file", "random moment"]


def lines_of(*run: object) -> dict[str, int]:
    """How many there are in the whole run at each of the places."""
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def count() -> None:
        places = {kind: Lines(*place) for kind, place in PLACES.items()}
        train(*run)
        sender.send({kind: place.seen for kind, place in places.items()})

    process = in_a_process(count)
    process.join()
    assert process.exitcode == 0
    return receiver.recv()


def train_and_die(kind: str, share: float, lines: int, marks: Path, *run: object) -> None:
    """Dies after that share of the lines, or in one of the next checkpoints."""

    def mark(where: str) -> None:
        with open(marks, "a") as file:
            file.write(f"{kind}: {where}\n")

    if kind == "snapshot file":  # to a slow disk, for which the checkpoint of the same step has to wait
        write = SnapshotWriter._write
        SnapshotWriter._write = lambda *arguments: (time.sleep(0.5), write(*arguments))
    if kind in PLACES:
        Lines(*PLACES[kind], max(1, int(share * lines)), mark)
    elif kind == "half a checkpoint file":
        die_writing(1 + int(4 * share), share, mark)
    train(*run)


PACKAGED = [pytest.param(name, marks=pytest.mark.heavy) for name in ("ademamix_lawa", "soap_ema")]


@pytest.mark.parametrize("name", ["lawa", "ema", *PACKAGED])
def test_a_run_killed_anywhere_ends_like_an_unbroken_one(tmp_path, name, capsys):
    if name not in ("lawa", "ema"):
        pytest.importorskip("pytorch_optimizer")
    settings = settings_of(name, steps=20, every=4, keep_all=False)
    settings = dataclasses.replace(settings, batch_size=16, save_snapshots_every_n_steps=4)
    run = (trial(tmp_path, name), settings)
    train(tmp_path / "unbroken", *run)  # here, so that the processes begin with all modules and data loaded
    begin = time.perf_counter()
    lines = lines_of(tmp_path / "counted", *run)
    seconds = time.perf_counter() - begin
    numbers = random.Random(name)
    waiting = [KINDS[i % len(KINDS)] for i in range(int(os.environ.get("KILLS", str(len(KINDS)))))]
    numbers.shuffle(waiting)
    killed: collections.Counter[str] = collections.Counter()
    runs = 0
    while waiting:
        runs += 1
        folder, kills, reached = tmp_path / f"killed_{runs}", 0, 0
        while True:
            kind = waiting[-1] if waiting and kills < 5 else ""
            share = numbers.uniform(0, 0.5)  # a run that goes on from a checkpoint has fewer lines left
            process = in_a_process(train_and_die, kind, share, lines.get(kind, 0), tmp_path / "marks.txt", folder, *run)
            if kind == "random moment":
                process.join(share * seconds)
                process.kill()
            process.join()
            if process.exitcode != -signal.SIGKILL:
                assert process.exitcode == 0
                break
            killed[waiting.pop()] += 1
            kills += 1
            assert newest(folder) >= reached
            reached = newest(folder)
        assert_same_end(tmp_path / "unbroken", folder)
        assert read_manifest(folder / "snapshots") == read_manifest(tmp_path / "unbroken" / "snapshots")
        verify(folder / "snapshots")
        assert not [path for path in folder.iterdir() if path.name.startswith((".partial", "unusable"))]
    marks = (tmp_path / "marks.txt").read_text()
    with capsys.disabled():
        print(f"\n{name}: {killed.total()} kills in {runs} runs, losses 0: {dict(killed)}")
    assert marks.count("half a checkpoint file: ") == killed["half a checkpoint file"]
    assert set(killed) == set(KINDS) or "KILLS" in os.environ


def rows(folder: Path) -> pd.DataFrame:
    """Training's table without the clock, and whether its closing row is there."""
    table = pd.read_csv(folder / "measurements.csv", dtype=str)
    return table.assign(score=table["score"].notna()).drop(columns="preemption_count")


def names(folder: Path) -> list[str]:
    """Of all files but TensorBoard's, and those that each start adds one of."""
    there = [str(path.relative_to(folder)) for path in folder.rglob("*")]
    return sorted(name for name in there if not name.startswith(("events.", "meta_data", "flags")))


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["lawa", "ema"])
def test_a_run_killed_at_any_change_of_its_files_ends_like_an_unbroken_one(tmp_path, name):
    settings = dataclasses.replace(settings_of(name, steps=6, every=3, keep_all=False), batch_size=16)
    run = (trial(tmp_path, name), dataclasses.replace(settings, save_snapshots_every_n_steps=3))
    train(tmp_path / "unbroken", *run)
    folder = tmp_path / "killed" / "trial"
    folder.parent.mkdir()
    for change in killed_at_every_change(folder.parent, train, folder, *run, but="tfevents"):
        train(folder, *run)
        assert_same_end(tmp_path / "unbroken", folder)
        pd.testing.assert_frame_equal(rows(folder), rows(tmp_path / "unbroken"), check_exact=True)
        assert names(folder) == names(tmp_path / "unbroken"), change
        verify(folder / "snapshots")


def test_a_run_killed_after_its_last_checkpoint_gets_the_rest_of_its_logs(tmp_path):
    run = (trial(tmp_path, "ema"), settings_of("ema", steps=4, every=2, keep_all=False))
    folder = tmp_path / "trial"
    train(folder, *run)
    whole, path = rows(folder), folder / "measurements.csv"
    assert list(whole["score"]) == [False] * 4 + [True]
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    (folder / ".partial_measurements.csv~here~1~01234567").touch()
    train(folder, *run)
    pd.testing.assert_frame_equal(rows(folder), whole, check_exact=True)
    assert not list(folder.glob(".*"))
    stamp = path.stat().st_mtime_ns
    train(folder, *run)  # which has nothing left to do
    assert path.stat().st_mtime_ns == stamp


def test_a_run_that_is_being_replaced_is_there_whole_or_not_at_all(tmp_path):
    """Or a later start would go on from what is left of it."""
    home = tmp_path / "runs"
    where = (str(home), "lawa/study_0", "mini_wmt", "pytorch")
    trial = home / "lawa" / "study_0" / "mini_wmt_pytorch" / "trial_1"
    trial.mkdir(parents=True)
    for name in ("checkpoint_5", "eval_measurements.csv", "measurements.csv"):
        (trial / name).write_text("global_step\n1")
    for _ in killed_at_every_change(home, experiment_folder, *where, True, False):
        assert not trial.parent.exists() or len(list(trial.iterdir())) == 3
        found = [path for path, _ in files.files(home, [])]
        assert len(found) == trial.parent.exists()  # a report does not read what is being deleted
        grow_old(home)
        folder = experiment_folder(*where, True, False)
        assert [path.name for path in folder.parent.rglob("*")] in ([folder.name], [])
        assert [path.name for path in folder.iterdir()] == []

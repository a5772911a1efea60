"""Rehearsals: what is written down on the way, and whether faults of an average are seen in it. None needs the harness;
whole rehearsals are in tests/official/test_rehearsals.py."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from launching.official_workloads import WORKLOADS, needs_of
from launching.rehearsal import averages, checks, data, drive, sizes, table
from launching.rehearsal.data import language, pictures, tables
from launching.rehearsal.record import EVENTS, RESTORED, SEEN, TRAINED, UPDATED, Record
from submissions.recipe.batch_sizes import BATCH_SIZES
from tests.support import reference
from tests.support.warm_python import python
from weight_averaging.averages import EMA, LAWA
from weight_averaging.errors import UsageError

UPDATES, KILLED_AFTER = 6, 4
POINT = {
    "learning_rate": 1e-2, "one_minus_beta1": 0.1, "beta2": 0.99, "weight_decay": 0.1, "warmup_factor": 0.02,
}  # fmt: skip
AVERAGES = {
    "lawa": ({"averaging_interval": 1, "averaging_window": 3}, LAWA(interval=1, window=3)),
    "ema": ({"averaging_interval": 2, "averaging_decay": 0.6}, EMA(interval=2, decay=0.6)),
}


def promise(average):
    recipe = SimpleNamespace(averages=SimpleNamespace(describe=lambda *_: average), point=None)
    return averages.promise_of(SimpleNamespace(recipe=recipe), None, 300)


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.floats(0.1, 0.9), st.integers(0, 12))
def test_the_reference_is_that_of_the_library(interval, window, decay, step):
    weights = {t: np.random.RandomState(t).randn(5).astype(np.float32) for t in range(step + 1)}
    snapshots = [weights[t] for t in range(1, step + 1) if t % interval == 0]
    for average, slow in (
        (LAWA(interval=interval, window=window), reference.lawa(snapshots, window)),
        (EMA(interval=interval, decay=decay), reference.ema(snapshots, decay)),
    ):
        found = averages.expected(averages.Promise(**promise(average)), weights, step)
        assert (found is None) == (slow is None)
        if slow is not None:
            np.testing.assert_allclose(found, slow, rtol=0, atol=1e-12)


def recorded(folder, average=AVERAGES["lawa"][1], seen=None, trained=None, restored=None, lost=()):
    """The record of a run that does what it promises, but for what is given by step."""
    folder.mkdir(exist_ok=True)
    record = Record(folder, 1)
    promised = promise(average) if average else None
    record.event("started")
    weights = {t: np.random.RandomState(t).randn(7).astype(np.float32) for t in range(UPDATES + 1)}
    record.event("initialised", promise=promised, averaging_hook=True)
    record.keep(UPDATED, 0, [weights[0]])
    for step in range(1, UPDATES + 1):
        if step == KILLED_AFTER + 1:
            record.part = 2
            record.event("started")
        record.event("batch", step - 1, seconds=0.1)
        record.keep(TRAINED, step, [(trained or {}).get(step, weights[step - 1])])
        record.keep(UPDATED, step, [weights[step]])
        record.event("updated", step, seconds=0.2)
        due = averages.expected(averages.Promise(**promised), weights, step) if promised else None
        record.keep(SEEN, step, [(seen or {}).get(step, weights[step] if due is None else due)])
        if step not in lost:
            record.event("evaluated", step, seconds=0.3)
        record.event("saved", step, seconds=0.4)
    record.event("ended", UPDATES)
    kept = record.weights(SEEN)[KILLED_AFTER]
    record.keep(RESTORED, KILLED_AFTER, [kept if restored is None else restored])
    return record, weights


def failed(record, codes=(-9, 0)):
    return {c.name: c.says for c in checks.checks(record, UPDATES, KILLED_AFTER, codes) if c.passed is False}


@pytest.mark.parametrize("average", [pair[1] for pair in AVERAGES.values()])
def test_a_run_as_it_should_be_passes(average, tmp_path):
    record, _ = recorded(tmp_path / "record", average)
    assert failed(record) == {}
    found = checks.measured(record)
    assert (found.update, found.evaluation, found.checkpoint, found.device_gib) == (0.2, 0.3, 0.4, None)
    assert 0 < found.host_gib < 100
    assert found.processor > 0


def test_faults_are_seen(tmp_path):
    _, weights = recorded(tmp_path / "good")
    mean = np.mean([weights[t] for t in (4, 5, 6)], axis=0)
    faults = {
        "raw weights were evaluated": ({"seen": {5: weights[5]}}, "average"),
        "one snapshot is missing": ({"seen": {6: np.mean([weights[5], weights[6]], axis=0)}}, "average"),
        "the window is one update old": ({"seen": {6: np.mean([weights[t] for t in (3, 4, 5)], axis=0)}}, "average"),
        "a mean before the window is full": ({"seen": {2: np.mean([weights[1], weights[2]], axis=0)}}, "average"),
        "half the precision": ({"seen": {6: mean.astype(np.float16)}}, "average"),
        "not a number": ({"seen": {6: np.full(7, np.nan)}}, "average"),
        "training goes on from the average": ({"trained": {6: mean}}, "raw weights back"),
        "other weights are restored": ({"restored": weights[1]}, "checkpoint"),
        "an evaluation failed in silence": ({"lost": (3,)}, "evaluations"),
    }
    for number, (fault, (changes, name)) in enumerate(faults.items()):
        record, _ = recorded(tmp_path / str(number), **changes)
        assert list(failed(record)) == [name], fault


def test_a_run_that_ends_otherwise_is_seen(tmp_path):
    record, weights = recorded(tmp_path / "record")
    assert failed(record, codes=(0,)) == {"end": "ended before it could be killed"}
    assert failed(record, codes=(-9, 1)) == {"end": "resumed, failed with exit status 1"}
    for step in range(1, UPDATES + 1):
        record.keep(UPDATED, step, [weights[0]])
    assert failed(record)["updates"] == "never changed the weights"
    (record.folder / f"{UPDATED}_6.npy").unlink()
    assert failed(record)["updates"] == "5 of 6 made"
    (record.folder / EVENTS).unlink()
    expected = {"data read", "updates", "evaluations", "average", "raw weights back", "checkpoint", "end"}
    assert set(failed(record)) == expected


def test_a_submission_of_others_is_told_by_whether_its_evaluations_differ(tmp_path):
    record, weights = recorded(tmp_path / "raw", average=None)
    assert failed(record) == {}
    record, _ = recorded(tmp_path / "own", average=None, seen={5: weights[1], 6: weights[2]})
    assert failed(record) == {}
    said = {c.name: c for c in checks.checks(record, UPDATES, KILLED_AFTER, (-9, 0))}
    assert said["average"].passed is None
    assert said["average"].says == "other than the raw weights at 2 of 6 evaluations"


def test_a_line_that_a_kill_cut_is_left_out(tmp_path):
    record, _ = recorded(tmp_path / "record")
    count = len(record.events())
    with open(record.folder / EVENTS, "a") as file:
        file.write('{"event": "upd')
    assert len(record.events()) == count


# The stage around a submission.


class Linear:
    """A workload in PyTorch with what a submission and the stage ask of it."""

    step_hint, loss_type, model_params_types, metrics_logger = 300, None, None, None
    num_test_examples = property(lambda self: 4)

    def model_fn(self, params, batch, model_state, mode, rng, update_batch_norm, dropout_rate=0.0):
        return params(batch["inputs"]), None

    def loss_fn(self, label_batch, logits_batch, mask_batch=None, label_smoothing=0.0):
        each = (logits_batch[:, 0] - label_batch) ** 2
        return {"summed": each.sum(), "n_valid_examples": torch.tensor(float(len(each))), "per_example": each}

    def eval_model(self, batch_size, params, model_state, rng, data_dir, imagenet_v2_data_dir, global_step):
        return {"validation/loss": 0.0}


def on_stage(folder, framework, base, module, hyperparameters, params, batch, model_state=None):
    """Rehearse a submission as the runner calls it, and return the record."""
    from launching.rehearsal.stage import Rehearsal, Stage

    folder.mkdir()
    size = sizes.settings("mnist", 1, True, False)
    rehearsal = Rehearsal(Stage(framework=framework, record=str(folder), part=1, on_cpu=True, size=size))
    rehearsal.submission(module)
    workload = rehearsal.workload_class(base)()
    assert (workload.step_hint, workload.num_test_examples, module.get_batch_size("x")) == (300, 10_000, 16)
    rehearsal.record.event("started")
    state = module.init_optimizer_state(workload, params, model_state, hyperparameters, None)
    for step in range(UPDATES):
        if step == KILLED_AFTER:
            rehearsal.record.part = 2
        common = {
            "workload": workload, "current_param_container": params, "current_params_types": None,
            "model_state": model_state, "hyperparameters": hyperparameters, "loss_type": None,
            "optimizer_state": state, "eval_results": [], "rng": batch["rng"],
        }  # fmt: skip
        chosen = module.data_selection(workload, iter([batch["batch"]]), state, params, model_state, None, step, None)
        state, params, model_state = module.update_params(batch=chosen, **common, global_step=step)
        common |= {"current_param_container": params, "model_state": model_state, "optimizer_state": state}
        state, params, model_state = module.prepare_for_eval(**common, global_step=step + 1)
        workload.eval_model(4, params, model_state, None, "", "", step + 1)
        rehearsal.note("saved", seconds=0.0)
        if step + 1 == KILLED_AFTER:
            rehearsal.keep(RESTORED, params)
    rehearsal.note("ended")
    return rehearsal.record


def functions_of(framework, name, **changes):
    """A submission's module, or one with some functions replaced."""
    module = importlib.import_module(f"submissions.{framework}.{name}.submission")
    names = ("recipe", "init_optimizer_state", "update_params", "prepare_for_eval", "data_selection", "get_batch_size")
    return SimpleNamespace(**{key: getattr(module, key) for key in names} | changes)


def point(name):
    values = POINT | AVERAGES[name][0]
    return namedtuple("H", values)(**values)


def in_pytorch(folder, name, module=None):
    torch.manual_seed(0)
    batch = {"inputs": torch.randn(8, 5), "targets": torch.randn(8)}
    given = {"batch": batch, "rng": [0, 1]}
    module = module or functions_of("pytorch", name)
    return on_stage(folder, "pytorch", Linear, module, point(name), torch.nn.Linear(5, 1), given)


@pytest.mark.parametrize("name", AVERAGES)
def test_a_submission_in_pytorch_passes_on_stage(name, tmp_path):
    record = in_pytorch(tmp_path / "record", name)
    assert failed(record) == {}
    assert record.events()[1]["promise"] == promise(AVERAGES[name][1])
    assert len(record.weights(TRAINED)) == UPDATES


@pytest.mark.parametrize("name", AVERAGES)
def test_a_submission_in_jax_passes_on_stage(name, tmp_path):
    jax = pytest.importorskip("jax")
    from tests.support.jax_runs import Regression

    class OfJax(Regression):
        step_hint, num_test_examples, eval_model = 300, Linear.num_test_examples, Linear.eval_model

    params, model_state = OfJax().init_model_fn(jax.random.PRNGKey(0))
    rng = np.random.RandomState(0)
    batch = {"inputs": rng.randn(8, 5).astype(np.float32), "targets": rng.randn(8).astype(np.float32)}
    given = {"batch": batch, "rng": jax.random.PRNGKey(1)}
    module = functions_of("jax", name)
    record = on_stage(tmp_path / "record", "jax", OfJax, module, point(name), params, given, model_state)
    assert failed(record) == {}
    assert len(record.weights(TRAINED)) == UPDATES


@pytest.mark.parametrize("part", [1, 2])
def test_a_run_waits_for_its_kill_after_a_whole_checkpoint(part, tmp_path, monkeypatch):
    from launching.rehearsal.stage import HELD_SECONDS, Rehearsal, Stage

    size = sizes.settings("mnist", 1, True, False)
    rehearsal = Rehearsal(Stage(framework="pytorch", record=str(tmp_path), part=part, on_cpu=True, size=size))
    model, saved, slept = torch.nn.Linear(2, 2), [], []
    utils = SimpleNamespace(
        save_checkpoint=lambda step: saved.append(step),
        maybe_restore_checkpoint=lambda step: (None, model, None, None, [], step, 0),
    )
    monkeypatch.setattr("launching.rehearsal.stage.time.sleep", slept.append)
    rehearsal.checkpoints(utils)
    utils.maybe_restore_checkpoint(0)
    assert rehearsal.record.weights(RESTORED) == {}
    for rehearsal.step in (KILLED_AFTER - 1, KILLED_AFTER, KILLED_AFTER + 1):
        utils.save_checkpoint(rehearsal.step)
    assert saved == [event["step"] for event in rehearsal.record.events()] == [3, 4, 5]
    assert slept == ([HELD_SECONDS] if part == 1 else [])
    utils.maybe_restore_checkpoint(KILLED_AFTER)
    (kept,) = rehearsal.record.weights(RESTORED).values()
    np.testing.assert_array_equal(kept, torch.cat([p.detach().flatten() for p in model.parameters()]).numpy())


def test_a_submission_that_trains_on_from_the_average_is_seen_on_stage(tmp_path):
    right = functions_of("pytorch", "lawa")

    def forgets(**kwargs):
        """As if the average in the model were the raw weights."""
        averager = kwargs["optimizer_state"]["averager"]
        model = kwargs["current_param_container"]
        kept = [p.detach().clone() for p in model.parameters()]
        averager.swap_out()
        with torch.no_grad():
            for p, value in zip(model.parameters(), kept):
                p.copy_(value)
        return right.update_params(**kwargs)

    record = in_pytorch(tmp_path / "record", "lawa", functions_of("pytorch", "lawa", update_params=forgets))
    assert "raw weights back" in failed(record)


def test_a_submission_that_evaluates_the_raw_weights_is_seen_on_stage(tmp_path):
    def forgets(**kwargs):
        return kwargs["optimizer_state"], kwargs["current_param_container"], kwargs["model_state"]

    record = in_pytorch(tmp_path / "record", "lawa", functions_of("pytorch", "lawa", prepare_for_eval=forgets))
    assert list(failed(record)) == ["average"]


# Small data sets.


def test_every_workload_has_a_set_and_a_size():
    for workload in WORKLOADS:
        sizes.size_of(workload)
        for framework in ("pytorch", "jax"):
            assert needs_of(workload, framework).folder in data.SETS


def test_what_the_pipelines_take_for_granted():
    """Sizes below which a pipeline ends in an endless loop, an assertion, or no evaluation; other traps are in
    tests/official/test_rehearsals.py."""
    assert BATCH_SIZES["criteo1tb"] <= tables.TRAINING_LINES  # dropped unless whole, before it repeats
    assert pictures.IMAGES["train"] >= BATCH_SIZES["imagenet_vit"]  # likewise
    assert BATCH_SIZES["librispeech_conformer"] <= language.UTTERANCES  # likewise
    assert pictures.KNEES_HELD_OUT > 100  # the first hundred are the validation set, the rest the test set
    assert pictures.DIGITS == {"train": 60_000, "test": 10_000}
    assert language.TRANSLATION_PIECES == 32_000  # as many as the model has outputs
    held_out = tables.HELD_OUT_PARTS // 2 * tables.LINES_OF_A_PART
    size = sizes.size_of("criteo1tb")
    assert size.examples <= held_out  # the loss is over this number, however many lines there are
    assert size.examples % size.eval_batch == 0
    for molecule in tables.molecules(50, 0):
        assert np.nanmean(molecule["labels"]) < 0.1  # or chance alone reaches the target


def prepare(root, name="criteo1tb"):
    return data.prepare(root, name, sys.executable, {**os.environ, "PYTHONPATH": os.getcwd()})


def test_a_small_data_set_is_made_once_and_again_when_it_is_not_whole(tmp_path):
    assert prepare(tmp_path)
    folder = tmp_path / "criteo1tb"
    assert len(list(folder.glob("day_*"))) == 23 + tables.HELD_OUT_PARTS
    line = (folder / "day_0_00").read_text().split("\n")[0].split("\t")
    assert len(line) == 1 + 13 + 26
    assert not prepare(tmp_path)
    (folder / "day_23_07").unlink()
    assert prepare(tmp_path)
    assert (folder / "day_23_07").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["criteo1tb"]


def test_real_data_is_left_alone(tmp_path):
    real = tmp_path / "criteo1tb" / "day_0_00"
    real.parent.mkdir()
    real.write_text("real")
    with pytest.raises(UsageError, match="holds data that no rehearsal made") as error:
        prepare(tmp_path)
    assert "\n" not in str(error.value)
    assert [path.name for path in real.parent.iterdir()] == ["day_0_00"]


def test_a_set_that_cannot_be_made_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"could not be written below .*KeyError: 'none'") as error:
        prepare(tmp_path, "none")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2e8))
    with pytest.raises(UsageError, match=r"0.2 GB free, the small data sets want 1 GB"):
        prepare(tmp_path)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UsageError, match=r"--data_dir=.*file"):
        prepare(file)


# Runs.


def test_a_kill_takes_ranks_and_loaders_along(tmp_path):
    code = (
        "import subprocess, sys, time\n"
        "leaf = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
        "print(leaf.pid, flush=True)\n"
        "time.sleep(600)"
    )
    top = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert top.stdout is not None
    leaf = int(top.stdout.readline())
    drive.kill(top.pid)
    assert top.wait(10) == -9
    deadline = time.monotonic() + 10
    while psutil.pid_exists(leaf) and psutil.Process(leaf).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "left running"
        time.sleep(0.05)
    drive.kill(top.pid)  # of one that is over: nothing


def test_a_run_is_killed_after_a_checkpoint_or_when_its_time_is_over(tmp_path):
    (tmp_path / "record").mkdir()
    record = Record(tmp_path / "record", 1)
    write = (
        "import json, time; open('record/events.jsonl', 'w').write(json.dumps({'event': 'saved', 'step': 4}) + chr(10))"
    )
    command = [sys.executable, "-c", f"{write}; time.sleep(600)"]
    assert drive._run(command, dict(os.environ), tmp_path, record, 4, 60) == -9
    assert drive._run(command, dict(os.environ), tmp_path, record, None, 1) == 124
    assert drive._run([sys.executable, "-c", "1/0"], dict(os.environ), tmp_path, record, 5, 60) == 1
    assert drive._last_error(tmp_path / "log.txt") == "ZeroDivisionError: division by zero"


def result(**changes):
    cell = drive.Cell(
        workload="ogbg", framework="pytorch", submission="lawa", submission_path="a/b.py", search_space="s.json", gpus=0
    )
    values = {"average": True, "raw weights back": True, "checkpoint": True, **changes.pop("checks", {})}
    times = ("first_batch", "first_update", "update", "evaluation", "checkpoint", "processor", "host_gib")
    measured = dict.fromkeys(times, 1.0)
    return {
        "cell": vars(cell) | changes.pop("cell", {}), "workload": "ogbg", "batch": 16, "seconds": 9.0, "said": "",
        "checks": [{"name": name, "passed": passed, "says": f"<{name}>"} for name, passed in values.items()],
        "measured": measured | {"device_gib": None} | changes,
    }  # fmt: skip


def test_the_table_says_what_failed():
    good, bad = result(), result(checks={"average": False})
    assert [table.passed(each) for each in (good, bad)] == [True, False]
    assert table.passed(result(checks={"average": None}))
    for text in (table.markdown([good, bad]), table.text([good, bad])):
        assert "average: <average>" in text
    page = table.page([good, bad], ["a < b"])
    assert "&lt;average&gt;" in page
    assert "a &lt; b" in page
    assert page.count("<tr") == 3


def test_hours_of_a_real_entry_follow_from_official_batches_alone():
    on_gpus = {"gpus": 4, "full_batch": True}
    assert table.hours(result()) is None
    assert table.hours(result(cell={"gpus": 4})) is None
    assert table.hours(result(cell=on_gpus, update=0.1)) == pytest.approx(15 * 52_000 * 0.1 / 3600)
    assert table.hours(result(cell=on_gpus, update=10.0)) == pytest.approx(15 * 11_303 / 3600)
    self_tuning = {**on_gpus, "search_space": None}
    assert table.hours(result(cell=self_tuning, update=10.0)) == pytest.approx(3 * 1.5 * 11_303 / 3600)


def test_sizes_follow_the_devices():
    four = sizes.settings("ogbg", 4, False, False)
    assert (four["batch"], four["eval_batch"], four["examples"], four["attributes"]) == (64, 256, 512, {})
    full = sizes.settings("finewebedu_lm", 4, False, True)
    assert (full["batch"], full["eval_batch"]) == (None, None)
    assert sizes.settings("finewebedu_lm", 1, True, False)["attributes"] == sizes.SMALL_LM
    assert sizes.rehearsed_name("criteo1tb", True) == "criteo1tb_test"
    assert sizes.rehearsed_name("criteo1tb", False) == "criteo1tb"
    assert sizes.rehearsed_name("criteo1tb_layernorm", True) == "criteo1tb_layernorm"
    mnist = sizes.settings("mnist", 2, True, False)
    assert (mnist["batch"], mnist["examples"]) == (32, 10_000)


# The command.


def command(*flags, cwd=None):
    words = [python(), "-m", "scripts.rehearse", *flags]
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=cwd)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "give --workload or --all"),
        (["--workload=ogbg"], "give either --submission or --submission_path"),
        (["--workload=nope", "--submission=lawa", "--gpus=0"], "unknown to the official harness"),
        (["--workload=ogbg", "--submission=nope", "--gpus=0"], "--submission=nope is unknown; choose from"),
        (["--workload=ogbg", "--submission=lawa", "--gpus=99"], "--gpus=99: only"),
        (["--workload=ogbg", "--submission=lawa", "--gpus=0", "--framework=numpy"], "numpy"),
        (["--workload=ogbg", "--submission=lawa", "--gpus=0", "--ranks=2", "--framework=jax"], "--ranks is for"),
        (["--workload=ogbg", "--submission_path=/a/b.py", "--gpus=0"], "is absolute"),
        (["--workload=ogbg", "--submission=lawa", "--gpus=0", "--harness_path=/none"], "no sources of the harness"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(flags, words, tmp_path):
    result = command(*flags, f"--out={tmp_path / 'out'}", f"--data_dir={tmp_path / 'data'}")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert words in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(importlib.util.find_spec("algoperf") is not None, reason="algoperf is installed")
def test_without_the_harness_it_says_how_to_install_it(tmp_path):
    result = command("--workload=ogbg", "--submission=lawa", "--gpus=0", f"--out={tmp_path}", f"--data_dir={tmp_path}")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "algoperf is not installed: see docs/official.md" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_made_again(tmp_path):
    cell = drive.Cell(
        workload="mnist",
        framework="pytorch",
        submission="lawa",
        submission_path="submissions/pytorch/lawa/submission.py",
        search_space="tuning_search_spaces/lawa.json",
        gpus=0,
    )
    folder = tmp_path / cell.name
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(result(cell=vars(cell))))
    done = command("--workload=mnist", "--submission=lawa", "--gpus=0", f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "1 of 1 passed" in done.stdout
    assert (tmp_path / "rehearsals.html").exists()
    assert Path("submissions/pytorch/lawa/submission.py").exists()


# Whole rehearsals, of a stand-in for the harness.

STAND_IN = f"--harness_path={Path(__file__).parents[1] / 'support' / 'stand_in_harness'}"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    prepare(root)
    return root


@pytest.mark.parametrize("name", ["lawa", "ema_self"])
def test_a_run_is_killed_resumed_and_passes(name, root, tmp_path):
    flags = ["--workload=criteo1tb", f"--submission={name}", "--gpus=0", f"--data_dir={root}", f"--out={tmp_path}"]
    done = command(*flags, STAND_IN)
    assert done.returncode == 0, done.stdout + done.stderr + (next(tmp_path.glob("*/log.txt"))).read_text()[-2000:]
    (path,) = tmp_path.glob("*/result.json")
    found = json.loads(path.read_text())
    assert [check["passed"] for check in found["checks"]] == [True] * 8
    assert not (path.parent / "runs").exists()
    assert found["checks"][-1]["says"] == "6 evaluations, criteo1tb_test"
    again = command(*flags, STAND_IN)
    assert again.returncode == 0
    assert "..." not in again.stdout


OWN = '''"""A submission of somebody else."""
import torch

from submissions.pytorch.nadamw.submission import data_selection, get_batch_size


def init_optimizer_state(workload, model_params, model_state, hyperparameters, rng):
    return {"optimizer": torch.optim.SGD(model_params.parameters(), lr=1e-4)}


def update_params(workload, current_param_container, batch, optimizer_state, **_):
    model = current_param_container
    if WORKS:
        loss = workload.loss_fn(batch["targets"], model(batch["inputs"])[:, 0])["summed"]
        model.zero_grad()
        loss.backward()
        optimizer_state["optimizer"].step()
    return optimizer_state, model, None
'''


@pytest.mark.parametrize("works", [True, False])
def test_a_submission_of_others_and_one_that_never_updates(works, root, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "submission.py").write_text(f"WORKS = {works}\n{OWN}")
    (tmp_path / "space.json").write_text('[{"learning_rate": 1e-3}]')
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    words = [
        sys.executable, "-m", "scripts.rehearse", "--workload=criteo1tb", "--gpus=0", STAND_IN, f"--data_dir={root}",
        "--submission_path=mine/submission.py", "--tuning_search_space=space.json", f"--out={tmp_path / 'out'}",
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == (not works), done.stdout + done.stderr
    says = "raw weights, as promised" if works else "NO updates: never changed the weights"
    assert says in done.stdout

"""The runner: bad input, logs, and that a killed run loses nothing."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from miniperf import checkpoints, search, spec, submission, workloads
from miniperf.errors import UsageError
from miniperf.runner import Settings, train_once

HYPERPARAMETERS = {
    "learning_rate": 1e-2, "one_minus_beta1": 0.1, "beta2": 0.99, "weight_decay": 0.1, "warmup_factor": 0.02,
    "dropout_rate": 0.1,
}  # fmt: skip
AVERAGING = {"nadamw": {}, "lawa": {"averaging_interval": 3, "averaging_window": 4}}
AVERAGING["ema"] = {"averaging_interval": 3, "averaging_decay": 0.7}


def trial(tmp_path: Path, name: str) -> object:
    path = tmp_path / "space.json"
    path.write_text(json.dumps([{**HYPERPARAMETERS, **AVERAGING[name]}]))
    return search.load(path, 1)[0]


def settings_of(name: str, steps: int = 60, every: int = 7) -> Settings:
    return Settings(
        workload_name="mini_imagenet_vit",
        submission_path=f"submissions/pytorch/{name}/submission.py",
        rng_seed=3,
        batch_size=64,
        max_global_steps=steps,
        eval_every_n_steps=every,
        continue_after_target=True,
    )


def train(folder: Path, hyperparameters: object, settings: Settings) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    module = submission.load(settings.submission_path)
    train_once(workloads.make(settings.workload_name), module, hyperparameters, settings, folder, {})


def metrics(folder: Path) -> pd.DataFrame:
    """Evaluation rows without the clock's columns."""
    table = pd.read_csv(folder / "eval_measurements.csv", dtype=str)
    return table[[c for c in table if "/" in c or c == "global_step"]]


def leaves(value: object, path: str = "") -> dict[str, object]:
    if isinstance(value, dict):
        return {k: v for key in value for k, v in leaves(value[key], f"{path}/{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for i, item in enumerate(value) for k, v in leaves(item, f"{path}/{i}").items()}
    return {path: value}


def assert_same_end(one: Path, other: Path) -> None:
    """Equal weights, optimizer, averager, generators and evaluations, bit for bit."""
    a, b = (checkpoints.load_latest(folder)[1] for folder in (one, other))
    for name in ("model_params", "optimizer_state", "random_state", "global_step", "batches_drawn"):
        left, right = leaves(a[name]), leaves(b[name])
        assert left.keys() == right.keys()
        for key, value in left.items():
            same = torch.equal(value, right[key]) if isinstance(value, torch.Tensor) else value == right[key]
            assert same, f"{name}{key} differs"
    pd.testing.assert_frame_equal(metrics(one), metrics(other), check_exact=True)


@pytest.mark.parametrize("name", ["nadamw", "lawa", "ema"])
def test_a_run_killed_at_random_moments_ends_like_an_unbroken_one(tmp_path, name):
    hyperparameters, settings = trial(tmp_path, name), settings_of(name)
    begin = time.perf_counter()
    train(tmp_path / "unbroken", hyperparameters, settings)
    seconds = time.perf_counter() - begin
    kills = int(os.environ.get("KILLS", "7"))
    delays = random.Random(name)
    context = multiprocessing.get_context("fork")  # a child that has imported everything: many kills in little time
    killed = rounds = 0
    while killed < kills:
        folder = tmp_path / f"killed_{rounds}"
        while True:
            process = context.Process(target=train, args=(folder, hyperparameters, settings))
            process.start()
            if killed < kills:
                process.join(delays.uniform(0.2, 0.9) * seconds)
            else:
                process.join(60)
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
                process.join()
                killed += 1
                continue
            assert process.exitcode == 0
            break
        rounds += 1
        assert_same_end(tmp_path / "unbroken", folder)


def test_logs_have_the_official_names_and_columns(tmp_path):
    train(tmp_path / "t", trial(tmp_path, "lawa"), settings_of("lawa", steps=20, every=5))
    names = {path.name for path in (tmp_path / "t").iterdir()}
    expected = {"measurements.csv", "eval_measurements.csv", "meta_data_0.json", "flags_0.json", "checkpoint_20"}
    assert expected <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    table = pd.read_csv(tmp_path / "t" / "eval_measurements.csv")
    assert list(table["global_step"]) == [1, 5, 10, 15, 20]  # also after the first update, as officially
    clock = {"accumulated_submission_time", "accumulated_eval_time", "accumulated_logging_time", "score"}
    assert clock | {"total_duration", "preemption_count", "validation/accuracy", "test/num_examples"} <= set(table)
    assert (table["score"] == table["accumulated_submission_time"]).all()
    assert table["score"].is_monotonic_increasing


def test_evaluations_by_time_stop_at_the_budget(tmp_path):
    settings = settings_of("nadamw", steps=None, every=None)
    workload = workloads.make("mini_imagenet_vit")
    workload.eval_period_time_sec, workload.max_allowed_runtime_sec = 0.2, 1.0
    torch.set_num_threads(1)
    (tmp_path / "t").mkdir()
    module = submission.load(settings.submission_path)
    results = train_once(workload, module, trial(tmp_path, "nadamw"), settings, tmp_path / "t", {})
    assert results[0][0] == 1
    assert 2 <= len(results) <= 6
    assert results[-1][1]["score"] < 1.0


def test_evaluating_changes_nothing_but_what_is_evaluated(tmp_path):
    """Raw weights at the end are the same whether the average was swapped in nine times or never."""
    train(tmp_path / "often", trial(tmp_path, "lawa"), settings_of("lawa", every=6))
    train(tmp_path / "never", trial(tmp_path, "nadamw"), settings_of("nadamw", every=60))
    often, never = (checkpoints.load_latest(tmp_path / name)[1] for name in ("often", "never"))
    raw = often["optimizer_state"]["averager"]["raw"]
    for left, right in zip(raw, never["model_params"].values(), strict=True):
        assert torch.equal(left, right)
    assert not torch.equal(raw[0], next(iter(often["model_params"].values())))


def damage_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damage_truncate, "checkpoint_10 is damaged"),
        (lambda path: path.write_bytes(b"not a checkpoint"), "checkpoint_10 is damaged"),
        (lambda path: torch.save({"model": 1}, path), "checkpoint_10 is not a checkpoint of a run"),
    ],
)
def test_a_damaged_checkpoint_is_named(tmp_path, change, message):
    settings = settings_of("ema", steps=10, every=10)
    train(tmp_path / "t", trial(tmp_path, "ema"), settings)
    change(tmp_path / "t" / "checkpoint_10")
    with pytest.raises(UsageError, match=message) as error:
        train(tmp_path / "t", trial(tmp_path, "ema"), settings)
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_submission_or_model_is_refused(tmp_path):
    train(tmp_path / "t", trial(tmp_path, "ema"), settings_of("ema", steps=10, every=10))
    with pytest.raises(UsageError, match="checkpoint_10 was written with submission_path='submissions/pytorch/ema"):
        train(tmp_path / "t", trial(tmp_path, "lawa"), settings_of("lawa", steps=20))
    path = tmp_path / "t" / "checkpoint_10"
    contents = torch.load(path, weights_only=True)
    contents["model_params"]["head.weight"] = torch.zeros(2, 2)
    torch.save(contents, path)
    with pytest.raises(UsageError, match="does not fit this submission and model"):
        train(tmp_path / "t", trial(tmp_path, "ema"), settings_of("ema", steps=20))


def test_nan_weights_are_told_and_the_last_good_average_is_kept(tmp_path, monkeypatch, caplog):
    workload = workloads.make("mini_imagenet_vit")
    loss_fn = workload.loss_fn
    calls = []

    def poisoned(*args, **kwargs):
        calls.append(1)
        result = loss_fn(*args, **kwargs)
        return {**result, "summed": result["summed"] * float("nan")} if len(calls) == 8 else result

    monkeypatch.setattr(workload, "loss_fn", poisoned)
    monkeypatch.setattr(workload, "eval_model", lambda *a: {"validation/accuracy": 0.0, "test/accuracy": 0.0})
    (tmp_path / "t").mkdir()
    settings = settings_of("ema", steps=12, every=12)
    module = submission.load(settings.submission_path)
    train_once(workload, module, trial(tmp_path, "ema"), settings, tmp_path / "t", {})
    said = [r.getMessage() for r in caplog.records if "not finite" in r.getMessage()]
    assert said[0] == "step 9: weights are not finite and are not collected; the average stays that of step 6"
    state = checkpoints.load_latest(tmp_path / "t")[1]
    assert all(torch.isfinite(value).all() for value in state["model_params"].values())


# Bad input, before any training.


def run_cli(*arguments: str, cwd: str | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "scripts.run", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workload=mini_imagnet"], "--workload=mini_imagnet is unknown; choose from mini_criteo1tb, mini_imagenet"),
        (["--submission=lawaa"], "--submission=lawaa is unknown; choose from ema,"),
        (["--submission_path=nowhere.py"], "--submission_path=nowhere.py does not exist below"),
        (["--num_tuning_trials=0"], "--num_tuning_trials must be >= 1, not 0"),
    ],
)
def test_the_command_line_says_what_is_wrong(tmp_path, arguments, message):
    base = ["--submission=lawa", "--workload=mini_imagenet_vit", f"--experiment_dir={tmp_path}"]
    result = run_cli(*base, *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_an_existing_experiment_is_not_touched_unasked(tmp_path):
    base = ["--submission=nadamw", "--workload=mini_imagenet_vit", f"--experiment_dir={tmp_path}"]
    base += ["--max_global_steps=2", "--eval_every_n_steps=1"]
    assert run_cli(*base).returncode == 0
    again = run_cli(*base)
    assert again.returncode == 2
    assert "continue it with --resume_last_run, or replace it with --overwrite" in again.stderr
    assert run_cli(*base, "--resume_last_run").returncode == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "is not JSON"),
        ("[]", "and not empty"),
        ("3", "must be a list of points or a dict of ranges"),
        ('[{"a": 1}, {"b": 1}]', "point 2 and point 1 do not both have a, b"),
        ('[{"a": 1}, 3]', "point 2 must be a dict"),
        ('{"a": {"min": 1, "max": 2, "scaling": "exp"}}', 'the scaling of a must be "linear" or "log", not \'exp\''),
        ('{"a": {"min": 1, "max": 2}}', "a lacks scaling"),
        ('{"a": {"min": 0, "max": 2, "scaling": "log"}}', "must be > 0 for log scaling"),
        ('{"a": {"min": 3, "max": 2, "scaling": "linear"}}', "min <= max"),
        ('{"a": {"feasible_points": 3}}', "must be a list that is not empty"),
        ('{"a": 3}', "not 3"),
    ],
)
def test_a_bad_search_space_is_named(tmp_path, text, message):
    path = tmp_path / "space.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"space\.json") as error:
        search.load(path, 3)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_halton_space_is_seeded_and_inside_its_ranges(tmp_path):
    path = tmp_path / "space.json"
    space = {"a": {"min": 1e-4, "max": 1e-2, "scaling": "log"}, "b": {"feasible_points": [1, 2, 3]}}
    path.write_text(json.dumps(space))
    trials = search.load(path, 64, seed=1)
    assert trials == search.load(path, 64, seed=1)
    assert trials != search.load(path, 64, seed=2)
    logs = np.log10([t.a for t in trials])
    assert -4 <= logs.min() < -3.8
    assert -2.2 < logs.max() <= -2
    assert abs(logs.mean() + 3) < 0.1
    assert {t.b for t in trials} == {1, 2, 3}


def test_submissions_are_checked_when_loaded(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="is absolute"):
        submission.load("/submissions/x.py")
    with pytest.raises(UsageError, match=r"must be a \.py file below"):
        submission.load("../x.py")
    monkeypatch.chdir(tmp_path)
    Path("incomplete_submission.py").write_text("def update_params(): ...\n")
    with pytest.raises(UsageError, match="lacks the function init_optimizer_state, data_selection, get_batch_size"):
        submission.load("incomplete_submission.py")


# The workloads.


@pytest.fixture(scope="module", params=["mini_imagenet_vit", "mini_criteo1tb"])
def workload(request):
    made = workloads.make(request.param)
    made.init_model_fn([0, 0])
    return made


def test_splits_are_disjoint_and_of_real_size(workload):
    sizes = [workload.num_train_examples, workload.num_validation_examples, workload.num_test_examples]
    assert min(sizes) >= 500
    if type(workload).__name__ == "MiniCriteo1TbWorkload":
        assert sum(sizes) == 327_346  # flights that arrived
        late = torch.cat([split["targets"] for split in workload.splits.values()]).mean().item()
        assert late == pytest.approx(0.2377, abs=1e-3)


def test_a_padded_example_changes_nothing(workload):
    model, _ = workload.init_model_fn([1, 0])
    batch = next(workload._build_input_queue([0, 0], "validation", "", 64))
    logits, _ = workload.model_fn(model, batch, None, spec.ForwardPassMode.EVAL, [0, 0], False)
    weights = torch.ones(64)
    weights[50:] = 0
    spoiled = logits.clone()
    spoiled[50:] = float("inf")
    part = workload.loss_fn(batch["targets"][:50], logits[:50])
    masked = workload.loss_fn(batch["targets"], spoiled, weights)
    torch.testing.assert_close(masked["summed"], part["summed"])
    assert masked["n_valid_examples"] == 50 == part["n_valid_examples"]


def test_evaluation_does_not_depend_on_the_batch_size(workload):
    model, _ = workload.init_model_fn([1, 0])
    results = []
    for size in (512, 999):
        workload._eval_iters.clear()
        count = workload.num_validation_examples
        results.append(workload._eval_model_on_split("validation", count, size, model, None, [0, 0], ""))
    workload._eval_iters.clear()
    for name, value in results[0].items():
        assert results[1][name] == pytest.approx(value, rel=1e-5)


def test_loss_falls_on_real_batches(workload):
    model, _ = workload.init_model_fn([2, 0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    queue = workload._build_input_queue([0, 0], "train", "", workload.batch_size)
    losses = []
    for step in range(200):
        batch = next(queue)
        logits, _ = workload.model_fn(model, batch, None, spec.ForwardPassMode.TRAIN, [step, 0], True)
        result = workload.loss_fn(batch["targets"], logits, batch["weights"])
        loss = result["summed"] / result["n_valid_examples"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-20:]) < 0.9 * np.mean(losses[:20])


def test_batches_depend_on_the_key_alone(workload):
    one, two, three = (workload._build_input_queue(key, "train", "", 32) for key in ([5, 6], [5, 6], [5, 7]))
    first, second, third = next(one), next(two), next(three)
    assert torch.equal(first["inputs"], second["inputs"])
    assert not torch.equal(first["inputs"], third["inputs"])


def test_nothing_known_only_after_departure_is_an_input():
    from miniperf.workloads import criteo1tb

    used = {*criteo1tb.NUMBERS, *criteo1tb.CATEGORIES}
    assert not used & {"dep_time", "dep_delay", "arr_time", "arr_delay", "air_time", "late"}
    rows = criteo1tb.load_flights()
    for name in criteo1tb.NUMBERS:
        # No single number gives the label away, as a delay would (its correlation is .8).
        assert abs(rows[name].corr(rows["late"])) < 0.3

"""The runner: logs, evaluations, checkpoints. That a killed run loses nothing: test_killed.py."""

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from miniperf import checkpoints, search, submission, workloads
from miniperf.frameworks.pytorch import FRAMEWORK as PYTORCH
from miniperf.runner import train_once
from miniperf.settings import Settings
from weight_averaging.errors import UsageError
from weight_averaging.offline.reading.snapshots import Snapshots

pytestmark = pytest.mark.usefixtures("few_held_out_images")
HYPERPARAMETERS = {
    "learning_rate": 1e-2, "one_minus_beta1": 0.1, "beta2": 0.99, "weight_decay": 0.1, "warmup_factor": 0.02,
    "dropout_rate": 0.1,
}  # fmt: skip
AVERAGING = {"nadamw": {}, "lawa": {"averaging_interval": 3, "averaging_window": 4}}
AVERAGING["ema"] = {"averaging_interval": 3, "averaging_decay": 0.7}
AVERAGING["ademamix_lawa"] = {"beta3": 0.999, "alpha": 8.0, **AVERAGING["lawa"]}
AVERAGING["soap_ema"] = {"precondition_frequency": 3, **AVERAGING["ema"]}
AVERAGING["schedule_free_adamw"] = {}


def trial(tmp_path: Path, name: str) -> object:
    path = tmp_path / "space.json"
    path.write_text(json.dumps([{**HYPERPARAMETERS, **AVERAGING[name]}]))
    return search.load(path, 1)[0]


def settings_of(name: str, steps: int = 60, every: int = 7, keep_all: bool = True) -> Settings:
    return Settings(
        workload_name="mini_imagenet_vit",
        submission_path=f"submissions/pytorch/{name}/submission.py",
        rng_seed=3,
        batch_size=64,
        max_global_steps=steps,
        eval_every_n_steps=every,
        continue_after_target=True,
        save_intermediate_checkpoints=keep_all,
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
    a, b = (checkpoints.load_latest(PYTORCH, folder, {})[1] for folder in (one, other))
    for name in ("model_params", "optimizer_state", "random_state", "global_step", "batches_drawn"):
        left, right = leaves(a[name]), leaves(b[name])
        assert left.keys() == right.keys()
        for key, value in left.items():
            same = torch.equal(value, right[key]) if isinstance(value, torch.Tensor) else value == right[key]
            assert same, f"{name}{key} differs"
    pd.testing.assert_frame_equal(metrics(one), metrics(other), check_exact=True)


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
    often, never = (checkpoints.load_latest(PYTORCH, tmp_path / name, {})[1] for name in ("often", "never"))
    raw = often["optimizer_state"]["averager"]["raw"]
    for left, right in zip(raw, never["model_params"].values(), strict=True):
        assert torch.equal(left, right)
    assert not torch.equal(raw[0], next(iter(often["model_params"].values())))


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
    told = "step 9: weights are not finite and are not collected (position); the average stays that of step 6"
    assert said[0] == told
    state = checkpoints.load_latest(PYTORCH, tmp_path / "t", {})[1]
    assert all(torch.isfinite(value).all() for value in state["model_params"].values())


def test_snapshots_are_the_raw_weights(tmp_path):
    """Also where the average was in the model at the evaluation: those of the checkpoints."""
    settings = dataclasses.replace(settings_of("lawa", steps=24, every=4), save_snapshots_every_n_steps=3)
    train(tmp_path / "t", trial(tmp_path, "lawa"), settings)
    snapshots, saved = Snapshots(tmp_path / "t" / "snapshots"), Snapshots(tmp_path / "t")
    assert snapshots.steps == list(range(3, 25, 3))
    for step in (12, 24):
        state = saved.state(step)
        for name, tensor in snapshots.state(step).items():
            assert torch.equal(tensor, state[name])

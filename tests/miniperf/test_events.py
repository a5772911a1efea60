"""TensorBoard: what its own reader finds in the runs' event files."""

import os
import sys
from pathlib import Path

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2, metadata

from miniperf import checkpoints, submission, workloads
from miniperf.frameworks.pytorch import FRAMEWORK as PYTORCH
from miniperf.logs import MetricsLogger, write_json
from miniperf.runner import train_once
from tests.miniperf.test_runner import settings_of, train, trial

pytestmark = pytest.mark.usefixtures("few_held_out_images")


def read(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return accumulator


def points(accumulator: EventAccumulator, tag: str) -> dict[int, float]:
    """Value by step; a step that is there twice fails the test."""
    found = accumulator.Scalars(tag)
    assert len({event.step for event in found}) == len(found), f"{tag} has a step twice"
    return {event.step: event.value for event in found}


@pytest.mark.parametrize("name", ["lawa", "ema"])
def test_tags_and_values_are_those_of_the_tables(tmp_path, name):
    folder = tmp_path / "t"
    folder.mkdir()
    hyperparameters = trial(tmp_path, name)
    write_json(folder / "hparams.json", hyperparameters._asdict())
    train(folder, hyperparameters, settings_of(name, steps=20, every=5))
    accumulator = read(folder)
    evaluations = pd.read_csv(folder / "eval_measurements.csv").set_index("global_step")
    for tag in ("1_validation/accuracy", "2_test/accuracy", "3_train/loss", "6_clock/score"):
        expected = evaluations["score" if "score" in tag else tag[2:]]
        assert points(accumulator, tag) == pytest.approx(dict(expected), rel=1e-6)
    assert "validation/num_examples" in evaluations
    assert not [tag for tag in accumulator.Tags()["scalars"] if "num_examples" in tag]
    training = pd.read_csv(folder / "measurements.csv").dropna(subset="loss").set_index("global_step")
    assert len(training) == 20
    training.index += 1  # rows count the updates before their own
    for tag in ("loss", "grad_norm", "learning_rate"):
        assert points(accumulator, f"4_training/{tag}") == pytest.approx(dict(training[tag]), rel=1e-6)
    held = points(accumulator, "5_averaging/snapshots")
    assert {step: held[step] for step in (2, 3, 20)} == {2: 0, 3: 1, 20: 4 if name == "lawa" else 1}
    assert [points(accumulator, "5_averaging/last_snapshot")[step] for step in (2, 3, 20)] == [0, 3, 18]
    first_ready = 12 if name == "lawa" else 3
    ready = points(accumulator, "5_averaging/ready")
    assert all(value == (step >= first_ready) for step, value in ready.items())
    # TensorBoard sorts groups by name, digits before letters, and opens the first.
    groups = list(dict.fromkeys(tag.split("/")[0] for tag in sorted(accumulator.Tags()["scalars"])))
    assert groups == ["1_validation", "2_test", "3_train", "4_training", "5_averaging", "6_clock"]


def test_the_hparams_tab_has_the_hyperparameters_and_the_metrics(tmp_path):
    folder = tmp_path / "t"
    folder.mkdir()
    hyperparameters = trial(tmp_path, "lawa")
    write_json(folder / "hparams.json", hyperparameters._asdict())
    settings = settings_of("lawa", steps=4, every=2)
    module, made = submission.load(settings.submission_path), workloads.make(settings.workload_name)
    flags = {"workload": settings.workload_name, "submission_path": settings.submission_path}
    train_once(made, module, hyperparameters, settings, folder, flags)
    content = read(folder).summary_metadata  # by tag
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG].plugin_data.content)
    shown = start.hparams
    expected = {**hyperparameters._asdict(), "seed": 3}
    texts = {name: shown[name].string_value for name in ("submission", "workload")}
    assert texts == {"submission": "lawa", "workload": "mini_imagenet_vit"}
    assert {name: value.number_value for name, value in shown.items() if name not in texts} == pytest.approx(expected)
    experiment = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG].plugin_data.content)
    named = {info.name.tag: info.display_name for info in experiment.metric_infos}
    splits = ("1_validation", "2_test")
    assert named == {f"{n}/mini_imagenet_vit/accuracy": f"{n[2:]}/accuracy" for n in splits}
    assert set(named) <= set(read(folder).Tags()["scalars"])
    first = [info.name for info in experiment.hparam_infos if info.differs]  # TensorBoard's own word for its order
    assert first == ["submission", "workload", "seed"]
    end = metadata.parse_session_end_info_plugin_data(content[metadata.SESSION_END_INFO_TAG].plugin_data.content)
    assert end.status == api_pb2.Status.Value("STATUS_SUCCESS")


def test_no_card_is_shared_by_two_workloads(tmp_path):
    """Runs of a tag share a card: those of a workload do, those of two would share an axis of two units."""
    tags = {}
    for run, workload in {"a": "mini_ogbg", "b": "mini_ogbg", "c": "mini_wmt"}.items():
        (tmp_path / run).mkdir()
        write_json(tmp_path / run / "flags_0.json", {"workload": workload})
        logger = MetricsLogger(tmp_path / run, 0)
        logger.append_scalar_metrics({"loss": 1.0, "grad_norm": 2.0}, 0)
        logger.append_scalar_metrics({"validation/loss": 1.0, "score": 3.0}, 1, is_eval=True)
        logger.finish()
        tags[run] = set(read(tmp_path / run).Tags()["scalars"])
    assert tags["a"] == tags["b"] != set()
    assert not tags["a"] & tags["c"]
    assert {"1_validation/mini_wmt/loss", "4_training/mini_wmt/loss", "6_clock/mini_wmt/score"} <= tags["c"]


def test_a_resumed_run_has_every_point_once(tmp_path, monkeypatch):
    """Killed at update 13, after a checkpoint at 10; in between it has logged what the second run logs again."""
    folder, settings = tmp_path / "t", settings_of("lawa", steps=20, every=5)
    folder.mkdir()
    hyperparameters = trial(tmp_path, "lawa")
    module = submission.load(settings.submission_path)
    update, prepared = module.update_params, []

    def killed(**arguments):
        if arguments["global_step"] == 13 and not prepared:
            prepared.append(True)
            raise KeyboardInterrupt
        return update(**arguments)

    monkeypatch.setattr(module, "update_params", killed)
    logged = []
    append = MetricsLogger.append_scalar_metrics
    monkeypatch.setattr(
        MetricsLogger, "append_scalar_metrics", lambda self, *a, **k: (logged.append(self), append(self, *a, **k))[1]
    )
    with pytest.raises(KeyboardInterrupt):
        train_once(workloads.make(settings.workload_name), module, hyperparameters, settings, folder, {})
    logged[-1]._events.flush()  # the points after the checkpoint reach the disk, the worst case
    assert set(points(read(folder), "4_training/loss")) == set(range(1, 14))
    assert checkpoints.load_latest(PYTORCH, folder, {})[1]["global_step"] == 10
    # TensorBoard reads files in the order of their names, which begin with the second.
    first = next(folder.glob("events.out.*"))
    os.rename(first, first.with_name("events.out.tfevents.0000000001.first"))
    train_once(workloads.make(settings.workload_name), module, hyperparameters, settings, folder, {})
    accumulator = read(folder)
    assert set(points(accumulator, "4_training/loss")) == set(range(1, 21))
    assert set(points(accumulator, "1_validation/accuracy")) == {1, 5, 10, 15, 20}


def test_a_run_begun_again_drops_what_a_killed_one_left(tmp_path):
    for value, name in ((1.0, "first"), (2.0, "second")):
        logger = MetricsLogger(tmp_path, 0)
        logger.append_scalar_metrics({"loss": value}, 0)
        logger.finish()
        written = next(path for path in tmp_path.glob("events.out.*") if "th" not in path.suffix)
        os.rename(written, tmp_path / f"events.out.tfevents.{value:.0f}.{name}.th")
    assert points(read(tmp_path), "4_training/loss") == {1: 2.0}


def test_without_tensorboard_the_tables_are_written_and_a_line_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    logger = MetricsLogger(tmp_path, 0)
    logger.append_scalar_metrics({"validation/accuracy": 0.5}, 10, is_eval=True)
    logger.finish()
    assert caplog.messages == ["no events for TensorBoard, which is not installed: pip install tensorboard"]
    assert (tmp_path / "eval_measurements.csv").read_text() == "global_step,validation/accuracy\n10,0.5\n"
    assert not list(tmp_path.glob("events.*"))

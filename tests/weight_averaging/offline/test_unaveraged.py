"""What offline averages must not do in silence: average an average, or what belongs to integers; skip what changes."""

import logging

import pytest
import torch
from torch import nn

from tests.support.forms import command
from tests.support.small_models import model_of, randomise
from weight_averaging import offline
from weight_averaging.averages import LAWA, SnapshotError
from weight_averaging.offline import Snapshots, latest_of
from weight_averaging.offline.layouts import layout_of
from weight_averaging.offline.recording import SnapshotWriter
from weight_averaging.torch import EMA
from weight_averaging.torch import LAWA as OnlineLAWA


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = model_of()
        self.embedding = nn.Embedding(4, 3)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.embedding.weight


def swapped_file(path, model, wrap, part=None, save=torch.save):
    """Two updates, then a checkpoint written while the average is in the model; returns the raw weights."""
    averager = EMA(part or model, decay=0.5)
    for step in (1, 2):
        randomise(model, step)
        averager.update(step)
    raw = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with averager.averaged():
        save(wrap(model.state_dict(), averager.state_dict()), path)
    return raw


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model, averager: {"model": model, "averager": averager},
        lambda model, averager: {"model": model, "state": {"training": [1, {"ema": averager}]}},
        lambda model, averager: {"state_dict": model, "callbacks": {"WeightAveraging": averager}},
        lambda model, averager: {"model": {f"module.{n}": t for n, t in model.items()}, "averager": averager},
        lambda model, averager: {"model": {f"net.{n}": t for n, t in model.items()}, "averager": averager},
    ],
    ids=["averager", "deep", "callback", "ddp", "part"],
)
def test_raw_weights_come_out_wherever_the_averagers_state_is(tmp_path, wrap):
    raw = swapped_file(tmp_path / "step_2.pt", Tied(), wrap)
    (state,) = (state for _, state in Snapshots(tmp_path).stream([2]))
    assert len(state) == len(raw)
    for (saved, value), (name, expected) in zip(state.items(), raw.items()):
        assert saved.endswith(name)
        assert torch.equal(value, expected), name  # the tied one too


def test_raw_weights_of_a_part_of_the_model(tmp_path):
    model = Tied()
    raw = swapped_file(tmp_path / "step_2.pt", model, lambda m, a: {"model": m, "averager": a}, part=model.body)
    state = Snapshots(tmp_path).state(2)
    assert raw
    assert all(torch.equal(state[name], raw[name]) for name in raw)


def test_raw_weights_where_a_submodule_is_called_module(tmp_path):
    class Wrapping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)

    raw = swapped_file(tmp_path / "step_2.pt", Wrapping(), lambda m, a: {"model": m, "averager": a})
    source = Snapshots(tmp_path).open(2)
    read = source.read(list(raw))
    assert read.keys() == raw.keys() != set()
    assert all(torch.equal(value, raw[name]) for name, value in read.items())
    from weight_averaging.offline.extract import extract

    assert extract(tmp_path / "step_2.pt").keys() == raw.keys()


def test_weights_that_are_neither_the_average_nor_raw_are_refused(tmp_path):
    model = Tied()
    changed = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    swapped_file(tmp_path / "step_2.pt", model, lambda m, a: {"model": changed, "averager": a})
    with pytest.raises(SnapshotError, match="are neither that average nor the raw ones"):
        Snapshots(tmp_path)


def test_a_folder_of_shards_written_while_swapped_is_refused(tmp_path):
    dcp = pytest.importorskip("torch.distributed.checkpoint")

    def save(contents, path):
        dcp.save(contents, checkpoint_id=path)

    swapped_file(tmp_path / "step_2", model_of(), lambda m, a: {"model": m, "any": {"key": a}}, save=save)
    with pytest.raises(SnapshotError, match="step_2 was written while an averager had its average in the model"):
        Snapshots(tmp_path)
    model, averager = model_of(), None
    averager = OnlineLAWA(model, interval=1, window=1)
    averager.update(3)
    save({"model": model.state_dict(), "averager": averager.state_dict()}, tmp_path / "run" / "step_3")
    assert Snapshots(tmp_path / "run").steps == [3]


def averaged(states, **options):
    plan = offline.Plan([(LAWA(window=len(states)), len(states))], range(1, len(states) + 1), **options)
    (result,) = plan.run(enumerate(states, start=1))
    return result.state


def test_frozen_tensors_that_change_are_told(tmp_path, caplog):
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "teacher": nn.Linear(2, 2), "still": nn.Linear(2, 2)})
    for name in ("teacher", "still"):
        model[name].requires_grad_(False)
    with SnapshotWriter(tmp_path, interval=1) as writer:
        for step in (1, 2, 3):
            model["teacher"].weight.data.add_(1.0)
            model["body"].weight.data.add_(1.0)
            writer.update(step, model)
    snapshots = Snapshots(tmp_path)
    assert snapshots.frozen == {"teacher.weight", "teacher.bias", "still.weight", "still.bias"}
    latest = latest_of(snapshots.layout, known=snapshots.latest)
    plan = offline.Plan([(LAWA(window=3), 3)], snapshots.steps, latest=latest, frozen=snapshots.frozen)
    with caplog.at_level(logging.WARNING, "weight_averaging"):
        (result,) = plan.run(snapshots.stream(plan.needed))
    assert torch.equal(result.state["teacher.weight"], model["teacher"].weight)
    assert [record.getMessage() for record in caplog.records] == [
        "1 frozen tensors change along the snapshots, and are taken from the latest one as they are (teacher.weight): "
        "include them to have them averaged"
    ]


def test_integer_weights_that_change_are_refused():
    def state(step):
        return {
            "fc.weight": torch.full((2, 3), step, dtype=torch.int8), "fc.w_step": torch.tensor([0.1 * step]),
            "norm.weight": torch.full((3,), float(step)), "count": torch.tensor(step),
            "history": torch.arange(step, step + 4), "mask": torch.rand(2, 2) > 0.5,
        }  # fmt: skip

    states = [state(step) for step in (1, 2, 3)]
    with pytest.raises(SnapshotError, match=r"step 2: fc\.weight is int8 and changes along .*: exclude 'fc'"):
        averaged(states)
    result = averaged(states, latest=latest_of(layout_of(states[0]), exclude=["fc"]))
    assert torch.equal(result["fc.w_step"], states[-1]["fc.w_step"])
    assert torch.equal(result["norm.weight"], torch.full((3,), 2.0))
    for other in states[1:]:
        other["fc.weight"] = states[0]["fc.weight"].clone()
    assert torch.equal(averaged(states)["fc.weight"], states[0]["fc.weight"])  # only the scales were trained


def test_eight_bit_floats_with_scales_are_refused():
    states = [
        {"fc.weight": torch.ones(2, 2).to(torch.float8_e4m3fn), "fc.weight_scale_inv": torch.tensor([step])}
        for step in (1.0, 2.0)
    ]
    with pytest.raises(ValueError, match=r"fc\.weight is float8_e4m3fn with a scale beside it: .*exclude 'fc'"):
        averaged(states)
    result = averaged(states, latest=latest_of(layout_of(states[0]), exclude=["fc"]))
    assert result["fc.weight_scale_inv"].item() == 2.0
    plain = [{"fc.weight": state["fc.weight"]} for state in states]
    assert averaged(plain)["fc.weight"].dtype == torch.float8_e4m3fn


def test_what_a_folder_of_shards_has_beside_the_model_is_told(tmp_path, capsys):
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    for step in (1, 2):
        whole = {"model": {"w": torch.full((3,), float(step))}, "optimizer": {"m": torch.ones(3)}, "epoch": step}
        dcp.save(whole, checkpoint_id=tmp_path / "run" / f"step_{step}")
    said = command(capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={tmp_path / 'average'}")
    assert "not in the average: epoch, optimizer" in said.splitlines()

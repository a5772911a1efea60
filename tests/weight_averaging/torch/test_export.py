"""What a user takes away: the average as a state dict, in a file, in another model; and averages whose length grows."""

import subprocess

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from tests.support.small_models import feed, randomise, saved, scalar_model
from tests.support.warm_python import python
from weight_averaging import averages, cli, offline
from weight_averaging.averages import SnapshotError
from weight_averaging.offline import extract
from weight_averaging.offline.reading.snapshots import Snapshots
from weight_averaging.offline.recording import SnapshotWriter
from weight_averaging.torch import EMA, LAWA, Averages

MAKERS = {
    "lawa": lambda model, **options: LAWA(model, interval=1, window=2, **options),
    "ema": lambda model, **options: EMA(model, decay=0.5, **options),
    "grid": lambda model, **options: Averages(model, [averages.LAWA(window=2, interval=1)], **options),
}
KINDS = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


class Tied(nn.Module):
    """Types, ties, frozen parts and buffers of all kinds."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.norm = nn.BatchNorm1d(4)
        self.half = nn.Linear(4, 4).to(torch.bfloat16)
        self.frozen = nn.Linear(4, 2).requires_grad_(False)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
        self.register_buffer("cache", torch.ones(1), persistent=False)
        self.complex = nn.Parameter(torch.ones(2, dtype=torch.complex64))


def trained(make, wrap=lambda model: model, steps=3):
    model = Tied()
    wrapped = wrap(model)
    averager = make(wrapped)
    for step in range(1, steps + 1):
        generator = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator))
            model.norm.running_mean.copy_(torch.randn(4, generator=generator))
            model.norm.num_batches_tracked.fill_(step)
        averager.update(step)
    return model, averager


def expected_of(model, averager):
    with averager.averaged():
        return {name: value.clone() for name, value in model.state_dict().items()}


def check_same(state, expected):
    assert list(state) == list(expected)
    for name, value in expected.items():
        assert state[name].dtype == value.dtype, name
        assert torch.equal(state[name], value), name


@KINDS
@pytest.mark.parametrize("wrap", [lambda model: model, torch.compile, nn.DataParallel], ids=["plain", "compile", "DP"])
@pytest.mark.parametrize("swapped", [False, True])
def test_average_state_dict_is_what_a_swap_shows(make, wrap, swapped):
    model, averager = trained(make, wrap)
    expected = expected_of(model, averager)
    if swapped:
        averager.swap_in()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = averager.average_state_dict()
    check_same(state, expected)
    check_same(model.state_dict(), before)
    assert averager.swapped == swapped
    for value in state.values():  # memory of its own
        value.fill_(0)
    check_same(model.state_dict(), before)
    assert averager.average_state_dict()["embed.weight"].any()
    other = Tied()
    other.load_state_dict(averager.average_state_dict())
    assert other.head.weight is other.embed.weight


@KINDS
def test_average_state_dict_before_there_is_one_is_an_error(make):
    averager = make(scalar_model())
    with pytest.raises(RuntimeError, match="there is no average yet"):
        averager.average_state_dict()


def test_recomputed_statistics_cannot_be_handed_out():
    model = nn.BatchNorm1d(2)
    ema = EMA(model, decay=0.5, buffers="recompute")
    ema.update(1)
    for action in (ema.average_state_dict, lambda: ema.copy_to(nn.BatchNorm1d(2))):
        with pytest.raises(TypeError, match=r"use the model within averaged\(recompute\)"):
            action()


class Merging(nn.Linear):
    """Its state dict has something else than its parameters."""

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        destination[prefix + "weight"] = 2 * self.weight


def test_a_state_dict_that_hides_its_tensors_is_an_error_and_not_the_raw_weights():
    model = Merging(2, 2, bias=False)
    ema = EMA(model, decay=0.5)
    ema.update(1)
    with pytest.raises(RuntimeError, match=r"state_dict has not got weight as it is: save model.state_dict\(\) within"):
        ema.average_state_dict()


@KINDS
@pytest.mark.parametrize("wrap", [lambda model: model, torch.compile, nn.DataParallel], ids=["plain", "compile", "DP"])
@pytest.mark.parametrize(
    "change", [lambda m: m, lambda m: m.double(), untie := "untie"], ids=["same", "double", "untied"]
)
def test_copy_to_another_model_while_training_goes_on(make, wrap, change):
    model, averager = trained(make)
    other = Tied()
    if change == "untie":
        other.head.weight = nn.Parameter(torch.zeros(5, 4))
    else:
        other = change(other) if change is not None else other
    assert averager.copy_to(wrap(other))
    raw = {name: value.clone() for name, value in model.state_dict().items()}
    expected = expected_of(model, averager)
    for name, value in expected.items():
        torch.testing.assert_close(other.state_dict()[name].to(value.dtype), value)
    check_same(model.state_dict(), raw)
    assert averager.update(4)  # and it was not refused


def test_copy_to_before_there_is_an_average_gives_the_raw_weights(caplog):
    model, other = scalar_model(), scalar_model()
    lawa = LAWA(model, interval=1, window=2)
    feed(lawa, model, [5.0])
    with caplog.at_level("INFO", "weight_averaging"):
        assert not lawa.copy_to(other)
    assert other.weight.item() == 5.0
    assert "not ready at step 1: the raw weights are evaluated" in caplog.text


def test_copy_to_a_model_of_another_kind_is_one_line_and_changes_nothing():
    model, averager = trained(MAKERS["ema"])
    for other, message in (
        (nn.Linear(2, 2), r"the other Linear has no complex; it must be a copy"),
        (model, r"complex of the other model is the model's own: copy.deepcopy"),
    ):
        before = {name: value.clone() for name, value in other.state_dict().items()}
        with pytest.raises(ValueError, match=message):
            averager.copy_to(other)
        check_same(other.state_dict(), before)
    wider = Tied()
    wider.frozen = nn.Linear(4, 3)
    with pytest.raises(ValueError, match=r"has shape \[3, 4\] for frozen.weight"):
        averager.copy_to(wider)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    st.booleans(),
    st.booleans(),
    st.integers(1, 6),
)
def test_all_ways_out_agree(dtype, channels_last, swapped, steps):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3)).to(dtype)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    lawa = LAWA(model, interval=1, window=3, allow_partial=True)
    for step in range(1, steps + 1):
        randomise(model, step)
        lawa.update(step)
    expected = expected_of(model, lawa)
    if swapped:
        lawa.swap_in()
    check_same(lawa.average_state_dict(), expected)
    other = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3)).to(dtype)  # never channels_last
    lawa.copy_to(other)
    check_same(other.state_dict(), expected)
    out = extract.average_of_state(saved(lawa))
    check_same({name: out[name] for name in expected if name in out}, {n: v for n, v in expected.items() if n in out})


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@KINDS
def test_extract_as_a_command(make, suffix, tmp_path):
    model, averager = trained(make)
    expected = expected_of(model, averager)
    checkpoint = {"model": model.state_dict(), "optimizer_state": {"averager": averager.state_dict()}, "step": 3}
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    out = tmp_path / f"average{suffix}"
    command = [python(), "-m", "weight_averaging", "extract", str(tmp_path / "checkpoint.pt"), "--out", str(out)]
    if make is MAKERS["grid"]:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 2
        assert (
            "error: the state holds several averages, say which by --average: lawa window=2 interval=1" in result.stderr
        )
        command += ["--average", "lawa window=2 interval=1"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{out}: {len(expected)} tensors" in result.stdout
    state = load_file(out) if suffix == ".safetensors" else torch.load(out, weights_only=True)
    check_same({name: state[name] for name in expected}, expected)
    Tied().load_state_dict(state)


def test_extract_says_what_is_wrong(tmp_path, capsys):
    model = scalar_model()
    lawa = LAWA(model, interval=1, window=3)
    feed(lawa, model, [1.0, 2.0])
    torch.save(lawa.state_dict(), tmp_path / "early.pt")
    torch.save({"a": lawa.state_dict(), "b": lawa.state_dict()}, tmp_path / "two.pt")
    torch.save(model.state_dict(), tmp_path / "none.pt")
    (tmp_path / "damaged.pt").write_bytes(b"no file of torch")
    for name, out, message in (
        ("early.pt", "x.pt", "the saved LAWA is not ready at step 2: it holds 2 of 3 snapshots"),
        ("two.pt", "x.pt", "should hold the state_dict() of one averager, and holds 2 of them"),
        ("none.pt", "x.pt", "should hold the state_dict() of one averager, and holds none"),
        ("damaged.pt", "x.pt", "is damaged or truncated"),
        ("gone.pt", "x.pt", "gone.pt is not there, or no file"),
        ("early.pt", "x.bin", "the name must end in .safetensors or .pt"),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(["extract", str(tmp_path / name), "--out", str(tmp_path / out)])
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not list(tmp_path.glob("x*"))
    norm = nn.BatchNorm1d(1)
    ema = EMA(norm, decay=0.5, buffers="recompute")
    ema.update(1)
    with pytest.raises(SnapshotError, match=r"saves no batch-norm statistics .* within averaged\(recompute\)"):
        extract.average_of_state(ema.state_dict())
    with pytest.raises(SnapshotError, match="this is the state of one LAWA"):
        extract.average_of_state(lawa.state_dict(), "lawa window=3 interval=1")


def test_snapshots_on_disk_know_what_training_leaves_alone(tmp_path):
    """Frozen parameters and buffers that are no statistics are not averaged offline either."""
    model = Tied()
    model.module = nn.Linear(1, 1)  # really called so
    lawa = LAWA(nn.DataParallel(model), interval=1, window=2)
    with SnapshotWriter(tmp_path, interval=1) as writer:
        for step in (1, 2):
            generator = torch.Generator().manual_seed(step)
            with torch.no_grad():
                for tensor in [*model.parameters(), model.norm.running_mean]:
                    tensor.copy_(torch.randn(tensor.shape, generator=generator))
            lawa.update(step)
            writer.update(step, nn.DataParallel(model))
    snapshots = Snapshots(tmp_path)
    assert snapshots.latest == {"mask", "frozen.weight", "frozen.bias"}
    assert "module.weight" in snapshots.layout
    plan = offline.Plan(
        [(averages.LAWA(window=2), 2)], [1, 2], latest=offline.latest_of(snapshots.layout, known=snapshots.latest)
    )
    (result,) = plan.run(snapshots.stream(plan.needed))
    expected = expected_of(model, lawa)
    check_same({name: result.state[name] for name in expected}, expected)

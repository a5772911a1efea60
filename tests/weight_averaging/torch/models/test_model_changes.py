"""A model that changes after its averager was made: followed by the rule of `weight_averaging.torch.model.changes`, or
refused in one line."""

import copy
import logging

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations, prune

from tests.support.small_models import model_of, randomise, saved
from weight_averaging import averages
from weight_averaging.torch import EMA, LAWA, Averages

MAKERS = {
    "lawa": lambda model, **options: LAWA(model, interval=1, window=2, **options),
    "ema": lambda model, **options: EMA(model, decay=0.5, **options),
    "grid": lambda model, **options: Averages(model, [averages.LAWA(window=2, interval=1)], **options),
}
KINDS = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)  # each is the mean of two snapshots, 1 and 2


def fill(model, value):
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point() or tensor.is_complex():
                tensor.fill_(value)


def averaged(averager, model):
    """What the model holds during evaluation, by name."""
    with averager.averaged() as ready:
        assert ready
        return {name: value.clone() for name, value in model.state_dict().items()}


def words(caplog):
    return [r.getMessage() for r in caplog.records if "the model has changed" in r.getMessage()]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(2, 3)
        self.head = nn.Linear(3, 2)


@pytest.mark.parametrize(("new", "said"), [(3, "2.weight is new)"), (4, "2.weight is new and 1 more like that)")])
def test_of_many_changes_the_first_three_are_named(new, said, caplog):
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(5)))
    for layer in model[:new]:
        layer.requires_grad_(False)
    averager = EMA(model, decay=0.5)
    averager.update(1)
    model.requires_grad_(True)
    averager.update(2)
    assert f"(0.weight is new, 1.weight is new, {said}" in words(caplog)[0]


@KINDS
def test_layers_unfrozen_later_are_averaged_from_then_on(make, caplog):
    model = Net()
    model.body.requires_grad_(False)
    averager = make(model)
    fill(model, 1.0)
    averager.update(1)
    model.body.requires_grad_(True)
    fill(model, 2.0)
    averager.update(2)
    values = averaged(averager, model)
    assert values["head.weight"].unique().tolist() == [1.5]
    assert values["body.weight"].unique().tolist() == [2.0]  # in the first snapshot it counts as it was first seen
    assert words(caplog) == [
        "the model has changed after update 2 (body.weight is new, body.bias is new): in the snapshots held, what is "
        "new counts as it is now"
    ]
    fill(model, 4.0)
    averager.update(3)
    assert averaged(averager, model)["body.weight"].unique().tolist() == [3.0]


@KINDS
def test_layers_frozen_later_stay_in_the_average(make):
    model = Net()
    averager = make(model)
    fill(model, 1.0)
    averager.update(1)
    model.body.requires_grad_(False)
    fill(model, 2.0)
    averager.update(2)
    assert averaged(averager, model)["body.weight"].unique().tolist() == [1.5]


class LoRA(nn.Module):
    """As such layers are: the base frozen, two small factors trained."""

    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Linear(base.in_features, 1, bias=False)
        self.b = nn.Linear(1, base.out_features, bias=False)


@KINDS
def test_lora_added_later(make, caplog):
    model = Net()
    averager = make(model)
    fill(model, 1.0)
    averager.update(1)
    model.body = LoRA(model.body)
    fill(model, 2.0)
    averager.update(2)
    values = averaged(averager, model)
    assert values["body.base.weight"].unique().tolist() == [1.5]  # the same parameter under another name
    assert values["body.a.weight"].unique().tolist() == [2.0]
    assert "body.a.weight is new, body.b.weight is new" in words(caplog)[0]


@KINDS
@pytest.mark.parametrize("width", [2, 5])
def test_a_head_replaced(make, width, caplog):
    model = Net()
    averager = make(model)
    fill(model, 1.0)
    averager.update(1)
    model.head = nn.Linear(3, width)
    fill(model, 2.0)
    averager.update(2)
    # Of the same shape it goes on under its name, with a warning; else it is new.
    assert averaged(averager, model)["head.weight"].unique().tolist() == [1.5 if width == 2 else 2.0]
    what = "is another parameter" if width == 2 else "has shape (5, 3) instead of (2, 3)"
    assert f"head.weight {what}" in words(caplog)[0]


@KINDS
@pytest.mark.parametrize("shape", [(5, 3), (3, 2), (2, 1), (2,), (1, 3)], ids=str)
def test_a_parameter_resized_even_to_what_would_broadcast(make, shape, caplog):
    model = Net()
    averager = make(model)
    fill(model, 1.0)
    averager.update(1)
    model.head.weight.data = torch.full(shape, 2.0)
    averager.update(2)
    with averager.averaged():
        assert model.head.weight.shape == shape
        assert model.head.weight.unique().tolist() == [2.0]
        assert model.body.weight.unique().tolist() == [1.0]
    assert f"head.weight has shape {shape} instead of (2, 3)" in words(caplog)[0]
    model.head.weight.data.fill_(4.0)
    averager.update(3)
    with averager.averaged():
        assert model.head.weight.unique().tolist() == [3.0]
    assert model.head.weight.unique().tolist() == [4.0]


@KINDS
def test_buffers_that_grow_or_appear(make):
    model = nn.BatchNorm1d(2)
    model.register_buffer("seen", torch.ones(2))
    averager = make(model, include="seen*")
    fill(model, 1.0)
    averager.update(1)
    model.seen = torch.full((3,), 2.0)
    model.running_mean = torch.full((4,), 2.0)
    model.register_buffer("seen_too", torch.full((1,), 2.0))
    averager.update(2)
    values = averaged(averager, model)
    assert values["seen"].tolist() == [2.0] * 3
    assert values["running_mean"].tolist() == [2.0] * 4
    assert values["seen_too"].tolist() == [2.0]
    model.seen = torch.full((3,), 4.0)
    averager.update(3)
    assert averaged(averager, model)["seen"].tolist() == [3.0] * 3


def convolutions():
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3))


EVENTS = {
    "channels_last": lambda model: model.to(memory_format=torch.channels_last),
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.to(torch.bfloat16),
    "double": lambda model: model.double(),
    "sync batch norm": nn.SyncBatchNorm.convert_sync_batchnorm,
    "checkpoint wrapper": lambda model: model._modules.update({"0": checkpoint_wrapper(model[0])}),
    "compile a part": lambda model: model._modules.update({"2": torch.compile(model[2])}),
    "assigned": lambda model: model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True),
    "renamed": lambda model: model.add_module("last", model._modules.pop("2")),
}


@KINDS
@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
@pytest.mark.parametrize("when", ["before an update", "before a swap", "while swapped"])
def test_what_changes_no_value_changes_no_average(make, event, when):
    model, twin = convolutions(), convolutions()
    averager, other = make(model), make(twin)
    for step in (1, 2, 3):
        for m, a in ((model, averager), (twin, other)):
            randomise(m, step)
            if (m, step, when) == (model, 3, "before an update"):
                event(model)
            a.update(step)
    if when == "before a swap":
        event(model)
    averager.swap_in()
    other.swap_in()
    if when == "while swapped":
        event(model)
    coarse = next(model.parameters()).element_size() == 2
    for mine, theirs in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(mine.double(), theirs.double(), atol=0.02 if coarse else 1e-6, rtol=0.01)
    averager.swap_out()
    other.swap_out()
    for mine, theirs in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(mine.double(), theirs.double(), atol=0.02 if coarse else 0.0, rtol=0.01 * coarse)


PARAMETRISATIONS = {
    "weight_norm": (lambda layer: parametrizations.weight_norm(layer), "parametrizations.weight.original0"),
    "old weight_norm": (lambda layer: nn.utils.weight_norm(layer), "weight_g"),
    "spectral_norm": (lambda layer: parametrizations.spectral_norm(layer), "parametrizations.weight.original"),
    "old spectral_norm": (lambda layer: nn.utils.spectral_norm(layer), "weight_orig"),
    "prune": (lambda layer: prune.l1_unstructured(layer, "weight", 1), "weight_orig"),
    "orthogonal": (lambda layer: parametrizations.orthogonal(layer), "parametrizations.weight.original"),
}


@pytest.mark.filterwarnings("ignore")
@KINDS
@pytest.mark.parametrize(("apply", "name"), PARAMETRISATIONS.values(), ids=PARAMETRISATIONS)
def test_parametrisations_applied_later(make, apply, name):
    """What is trained from then on is averaged; what only was under another name keeps its snapshots."""
    model = Net()
    averager = make(model)
    randomise(model, 1)
    averager.update(1)
    first = model.head.weight.detach().clone()
    apply(model.head)
    names = dict(model.named_parameters())
    assert f"head.{name}" in names
    raw = names[f"head.{name}"].detach().clone()
    averager.update(2)
    average = averaged(averager, model)[f"head.{name}"]
    torch.testing.assert_close(average, (first + raw) / 2 if name == "weight_orig" else raw)
    assert torch.equal(dict(model.named_parameters())[f"head.{name}"], raw)
    with averager.averaged():
        assert model.head(torch.ones(1, 3)).isfinite().all()


@KINDS
def test_weights_that_pruning_has_made_zero_for_good_stay_zero(make, caplog):
    """Under the mask the weights themselves are not zero; those in the snapshots held would bring them back."""
    model = Net()
    averager = make(model)
    prune.l1_unstructured(model.head, "weight", 3)
    for step in (1, 2):
        with torch.no_grad():
            model.head.weight_orig.add_(1.0)
        averager.update(step)
    prune.remove(model.head, "weight")
    raw = model.head.weight.detach().clone()
    assert (raw == 0).sum() == 3
    assert torch.equal(averaged(averager, model)["head.weight"], raw)
    assert "head.weight was head.weight_orig" in words(caplog)[0]


def test_a_tensor_that_goes_while_the_average_is_in_the_model_is_told():
    model = Net()
    ema = EMA(model, decay=0.5)
    fill(model, 1.0)
    ema.update(1)
    ema.swap_in()
    model.head.weight.data = torch.ones(4, 3)
    with pytest.raises(RuntimeError, match=r"while the average was in it: head.weight has another shape.*state_dict"):
        ema.swap_out()
    model.head.weight.data = torch.ones(2, 3)
    assert ema.swap_out()
    ema.swap_in()
    weight = model.head._parameters.pop("weight")
    with pytest.raises(RuntimeError, match=r"head.weight is gone"):
        ema.swap_out()
    model.head._parameters["weight"] = weight
    assert ema.swap_out()


def test_a_model_that_becomes_unusable_is_told_at_the_next_update():
    model = Net()
    ema = EMA(model, decay=0.5)
    fill(model, 1.0)
    ema.update(1)
    model.head = nn.Linear(3, 2, device="meta")
    with pytest.raises(ValueError, match=r"head.weight is on the meta device"):
        ema.update(2)
    model.head = nn.Linear(3, 2)
    fill(model, 3.0)
    assert ema.update(3)
    assert averaged(ema, model)["body.weight"].unique().tolist() == [2.0]


@KINDS
def test_a_run_that_unfroze_layers_resumes(make):
    """The state has tensors that the fresh averager, of a model still frozen, does not average yet."""
    model = Net()
    model.body.requires_grad_(False)
    averager = make(model)
    fill(model, 1.0)
    averager.update(1)
    model.body.requires_grad_(True)
    for step in (2, 3):
        fill(model, float(step))
        averager.update(step)
    resumed = Net()
    resumed.body.requires_grad_(False)
    resumed.load_state_dict(model.state_dict())
    other = make(resumed)
    other.load_state_dict(saved(averager))
    for key, value in averaged(other, resumed).items():
        assert torch.equal(value, averaged(averager, model)[key]), key


@pytest.mark.parametrize("placement", ["device", "host"])
def test_nothing_is_said_where_nothing_has_changed(placement, caplog):
    model = model_of()
    ema = EMA(model, decay=0.5, placement=placement)
    with caplog.at_level(logging.WARNING, "weight_averaging"):
        for step in range(1, 6):
            randomise(model, step)
            model[1].running_mean = model[1].running_mean.clone()  # as some layers do at every pass
            ema.update(step)
            with ema.averaged():
                model.eval()
                model(torch.ones(2, 3))
            model.train()
    assert caplog.records == []

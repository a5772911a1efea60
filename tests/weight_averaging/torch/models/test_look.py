"""What the quick look at a model sees, beside a slow walk over all of it; and that it is read where it is now."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.support.small_models import randomise
from weight_averaging.torch import EMA
from weight_averaging.torch.model.weights import LiveWeights


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 3, bias=False))
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.norm = nn.LayerNorm(3)
        self.register_parameter("none", None)
        self.register_buffer("nothing", None)
        self.norm.register_buffer("table", torch.zeros(2))


def replace(module, key):
    module._parameters[key] = nn.Parameter(module._parameters[key].detach().clone())


def change_data(change):
    def apply(module, key):
        module._parameters[key].data = change(module._parameters[key].data)

    return apply


def rename(module, key):
    module.register_parameter(f"{key}_orig", module._parameters.pop(key))


def rename_child(module, key):
    module._modules[f"{key}_orig"] = module._modules.pop(key)


def set_none(module, key):
    module._buffers[key] = torch.zeros(3) if module._buffers[key] is None else None


# By the store in which a key is chosen. Some change nothing that an average depends on: values, strides of one layout.
CHANGES = {
    "_parameters": {
        "replace": replace,
        "remove": lambda module, key: delattr(module, key),
        "set to None": lambda module, key: module._parameters.__setitem__(key, None),
        "rename": rename,
        "freeze or unfreeze": lambda module, key: module._parameters[key].requires_grad_(
            not module._parameters[key].requires_grad
        ),
        "another type": change_data(lambda data: data.double()),
        "another type by set_data of a view": change_data(lambda data: data.view(torch.int32).view(torch.float32)),
        "another shape": change_data(lambda data: data[:2].clone()),
        "another shape of one storage": change_data(lambda data: data.view(-1, 1)),
        "transposed": change_data(lambda data: data.t()),
        "another storage": change_data(lambda data: data.clone()),
        "resize_": lambda module, key: module._parameters[key].data.resize_(1),
        "set_": lambda module, key: module._parameters[key].data.set_(torch.zeros(5)),
        "values": lambda module, key: module._parameters[key].data.add_(1.0),
    },
    "_buffers": {
        "replace": lambda module, key: setattr(module, key, copy.copy(getattr(module, key))),
        "remove": lambda module, key: delattr(module, key),
        "None or not": set_none,
        "another shape": lambda module, key: module._buffers.__setitem__(key, torch.zeros(7)),
    },
    "_modules": {
        "replace": lambda module, key: setattr(module, key, copy.deepcopy(getattr(module, key))),
        "remove": lambda module, key: delattr(module, key),
        "rename": rename_child,
        "add": lambda module, key: module._modules[key].add_module("more", nn.Linear(1, 1)),
    },
}


def walked(model, weights):
    """The same by names: what is where, what is trained, and how what is averaged lies in memory."""
    there = {}
    averaged = {(id(entry.module), entry.key) for entry in weights.entries}
    for name, module in model.named_modules():
        there[name] = (id(module), list(module._modules))
        for key, tensor in module._parameters.items():
            there[name, key] = None if tensor is None else (id(tensor), tensor.requires_grad)
        for key, tensor in module._buffers.items():
            there[name, key, "buffer"] = tensor is None
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if (id(module), key) in averaged and tensor is not None:
                there[name, key, "layout"] = (tensor.dtype, tensor.shape, tensor.is_contiguous(), tensor.device)
    return there


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_look_sees_what_a_walk_over_all_of_the_model_sees(data):
    model = Net()
    weights = LiveWeights(model, True)
    assert not weights.has_changed()
    before = walked(model, weights)
    store = data.draw(st.sampled_from(sorted(CHANGES)))
    change = data.draw(st.sampled_from(sorted(CHANGES[store])))
    places = [(module, key) for module in model.modules() for key in getattr(module, store)]
    if change not in ("remove", "rename", "None or not"):
        places = [(module, key) for module, key in places if getattr(module, store)[key] is not None]
    if store == "_parameters" and change == "rename":
        places = [(module, key) for module, key in places if module._parameters[key] is not None]
    module, key = data.draw(st.sampled_from(places))
    CHANGES[store][change](module, key)
    assert weights.has_changed() == (walked(model, weights) != before)


@pytest.mark.parametrize("check", [True, False])
@settings(max_examples=40, deadline=None)
@given(changes=st.lists(st.sampled_from(["data", "set_", "parameter", "module"]), min_size=1, max_size=4))
def test_a_small_model_is_read_where_its_values_are_now(check, changes):
    """Its tensors are gathered into memory that is kept, from wherever they are."""
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    ema = EMA(model, decay=0.0, check_finite=check)
    for step, change in enumerate(changes, start=1):
        layer = model[0]
        if change == "data":
            layer.weight.data = torch.randn(3, 2)
        elif change == "set_":
            layer.weight.data.set_(torch.randn(3, 2))
        elif change == "parameter":
            layer.weight = nn.Parameter(torch.randn(3, 2))
        else:
            model[0] = nn.Linear(2, 3)
        randomise(model, step)
        ema.update(step)
        for name, value in ema.average_state_dict().items():
            torch.testing.assert_close(value, model.state_dict()[name], rtol=0, atol=0)
            assert not value.requires_grad

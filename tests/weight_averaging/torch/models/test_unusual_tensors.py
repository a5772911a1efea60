"""Models whose tensors or modules are not plain ones: scripted, packed, held elsewhere, sharing elements, wrapped."""

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.support.small_models import average_of, feed, model_of, scalar_model, value_of
from weight_averaging.averages import Merge
from weight_averaging.torch import EMA, LAWA, Averager, recompute_batch_norm
from weight_averaging.torch.model.selection import shares_elements

EVERY_AVERAGER = {
    "lawa": lambda model: LAWA(model, interval=1, window=2),
    "ema": lambda model: EMA(model, decay=0.5),
    "merge": lambda model: Averager(model, Merge(shape="linear", window=2, interval=1)),
}
every_averager = pytest.mark.parametrize("make", EVERY_AVERAGER.values(), ids=EVERY_AVERAGER)


class Packed(torch.Tensor):
    """A weight that is computed from another tensor and knows next to no operation, as quantised ones do."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            return cls(args[0].inner)
        raise NotImplementedError(f"{function} is not supported")


def placeholder(parameter):
    """What DeepSpeed's ZeRO-3 makes of a parameter between passes."""
    parameter.ds_shape, parameter.ds_id, parameter.data = parameter.shape, 0, torch.empty(0)


@every_averager
def test_placeholders_of_zero_3_are_refused(make):
    model = nn.Linear(4, 4)
    for parameter in model.parameters():
        placeholder(parameter)
    with pytest.raises(ValueError, match="weight is a placeholder of DeepSpeed's ZeRO-3"):
        make(model)


@every_averager
def test_placeholders_are_refused_when_they_are_first_seen(make):
    model = nn.Linear(4, 4)
    averager = make(model)
    placeholder(model.weight)
    with pytest.raises(ValueError, match="weight is a placeholder"):
        averager.update(1)


@every_averager
def test_an_average_of_no_element_is_refused(make):
    with pytest.raises(ValueError, match="no element in the tensors to average"):
        make(nn.Linear(0, 4, bias=False))


def test_a_tensor_without_elements_beside_others_is_fine():
    model = nn.ModuleList([nn.Linear(0, 2), scalar_model()])
    averager = LAWA(model, interval=1, window=2)
    assert averager.update(1)


@every_averager
@pytest.mark.parametrize("part", [False, True])
def test_scripted_modules(make, part):
    def build():
        scripted = torch.jit.script(model_of())
        return nn.Sequential(scripted, nn.Linear(2, 1)) if part else scripted

    model = build()
    plain = nn.Sequential(model_of(), nn.Linear(2, 1)) if part else model_of()
    plain.load_state_dict(model.state_dict())
    mine, theirs = make(model), make(plain)
    for step in (1, 2):
        with torch.no_grad():
            for a, b in zip(model.parameters(), plain.parameters()):
                b.copy_(a.add_(step))
        mine.update(step)
        theirs.update(step)
    assert (value_of(mine, model) == value_of(theirs, plain)).all()
    assert list(mine.average_state_dict()) == list(theirs.average_state_dict())
    assert mine.copy_to(copy.deepcopy(model))


def test_batch_norm_of_a_scripted_module_is_recomputed_as_of_a_plain_one():
    plain = model_of()
    scripted = torch.jit.script(copy.deepcopy(plain))
    batches = torch.randn(3, 8, 3)
    for model in (plain, scripted):
        recompute_batch_norm(model, [lambda batch=batch, model=model: model(batch) for batch in batches])
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, scripted.state_dict()[name]), name


def test_a_checkpoint_of_a_scripted_module_taken_while_swapped_ends_in_the_raw_weights():
    """It takes no hook, so that the checkpoint of the model, loaded last, is put right at the next update."""
    model = torch.jit.script(scalar_model())
    averager = LAWA(model, interval=1, window=2)
    feed(averager, model, [1.0, 3.0])
    averager.swap_in()
    file = io.BytesIO()
    torch.save({"averager": averager.state_dict(), "model": model.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed = torch.jit.script(scalar_model())
    other = LAWA(resumed, interval=1, window=2)
    other.load_state_dict(state["averager"])
    resumed.load_state_dict(state["model"])
    other.update(3)
    assert resumed.weight.item() == 3.0
    assert average_of(other, resumed) == 3.0


@every_averager
def test_elements_that_share_memory_are_refused(make):
    model = nn.Module()
    model.w = nn.Parameter(torch.zeros(1).expand(5))
    model.v = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="elements of w share memory"):
        make(model)
    model.w.requires_grad_(False)
    assert make(model).update(1)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 9)), min_size=1, max_size=3))
def test_no_tensor_whose_elements_share_memory_is_passed(dimensions):
    shape, strides = zip(*dimensions)
    tensor = torch.as_strided(torch.zeros(128), shape, strides)
    places = {int(p) for p in torch.as_strided(torch.arange(128), shape, strides).reshape(-1)}
    if len(places) < tensor.numel():
        assert shares_elements(tensor)


@settings(max_examples=100, deadline=None)
@given(st.permutations([0, 1, 2]), st.lists(st.integers(1, 4), min_size=3, max_size=3), st.integers(1, 3))
def test_transposed_and_sliced_tensors_share_nothing(order, shape, step):
    assert not shares_elements(torch.zeros(shape).permute(order)[..., ::step])


@every_averager
def test_a_frozen_packed_base_is_left_as_it_is(make):
    model = scalar_model()
    base = torch.ones(4, 4)
    model.base = nn.Parameter(Packed(base), requires_grad=False)
    averager = make(model)
    feed(averager, model, [1.0, 2.0])
    assert average_of(averager, model) == 1.5
    assert averager.average_state_dict()["base"].inner is base
    assert model.base.inner is base


@every_averager
def test_a_trained_packed_tensor_is_one_line(make):
    model = scalar_model()
    model.base = nn.Parameter(Packed(torch.ones(4, 4)))
    with pytest.raises(TypeError, match="base is a Packed, whose values cannot be averaged"):
        make(model)
    assert LAWA(model, interval=1, window=1, exclude="base").update(1)


def test_a_class_of_tensors_without_arithmetic_of_its_own_is_averaged():
    class Named(nn.Parameter):
        pass

    model = scalar_model()
    model.weight = Named(torch.ones(1, 1))
    averager = LAWA(model, interval=1, window=2)
    feed(averager, model, [1.0, 2.0])
    assert average_of(averager, model) == 1.5


def test_a_model_set_up_by_fabric_has_the_names_of_the_plain_one():
    fabric = pytest.importorskip("lightning.fabric")
    model = model_of()
    wrapped = fabric.Fabric(accelerator="cpu", devices=1).setup(model)
    averager = LAWA(wrapped, interval=1, window=1, exclude="0")
    averager.update(1)
    plain = LAWA(model_of(), interval=1, window=1, exclude="0")
    plain.load_state_dict(averager.state_dict())
    assert plain.snapshot_steps == [1]
    assert set(averager.average_state_dict()) == set(model.state_dict())

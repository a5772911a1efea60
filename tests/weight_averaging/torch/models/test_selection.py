"""Which tensors are averaged: by default what has a mean that means something, and what include and exclude say."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune

from tests.support.small_models import average_of, feed, floats, randomise, scalar_model
from weight_averaging import averages, offline
from weight_averaging.offline.layouts import layout_of
from weight_averaging.torch import EMA, LAWA, Averages
from weight_averaging.torch.model.selection import Selection


def names_of(model, **options):
    return [entry.name for entry in Selection(True, **options).of(model).entries]


class Student(nn.Module):
    """With a teacher that follows it, as mean-teacher training and self-distillation have."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.teacher = nn.Linear(2, 2).requires_grad_(False)
        self.register_buffer("center", torch.zeros(2))
        self.register_buffer("count", torch.zeros(1, dtype=torch.long))
        self.register_buffer("cache", torch.zeros(2), persistent=False)


NET = ["net.0.weight", "net.0.bias", "net.1.weight", "net.1.bias", "net.1.running_mean", "net.1.running_var"]
TEACHER = ["teacher.weight", "teacher.bias"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, NET),
        ({"include": "teacher"}, NET + TEACHER),
        ({"include": ["teacher.w*", "center"]}, ["center", *NET, "teacher.weight"]),
        ({"include": "cache"}, ["cache", *NET]),
        ({"exclude": "net.1"}, NET[:2]),
        ({"exclude": "*.running_*"}, NET[:4]),
        ({"include": lambda name, tensor: name.startswith("teacher") and tensor.ndim == 2}, [*NET, "teacher.weight"]),
        ({"exclude": lambda name, tensor: tensor.ndim == 1}, ["net.0.weight"]),
        ({"include": "teacher", "exclude": ["net.1", "net.0.bias"]}, ["net.0.weight", *TEACHER]),
    ],
)
def test_include_and_exclude(options, expected):
    assert names_of(Student(), **options) == expected


def test_what_is_left_out_is_said_once(caplog):
    with caplog.at_level(logging.INFO, "weight_averaging"):
        EMA(Student(), decay=0.5)
    assert caplog.messages[0] == (
        "EMA of Student: 6 tensors are averaged; 2 left as training has them: buffers (center, cache); 2 left as "
        "training has them: frozen parameters (teacher.weight, teacher.bias)"
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"include": "teacher.wait"}, ValueError, r"include: no tensor .* 'teacher.wait'; there is teacher.weight"),
        ({"exclude": ["net", "ne"]}, ValueError, r"exclude: no tensor .* 'ne'"),
        ({"include": 3}, TypeError, "include takes names, patterns or a function of name and tensor, not 3"),
        ({"exclude": [3]}, TypeError, "exclude takes names, patterns or a function of name and tensor, not 3"),
        ({"include": "count"}, TypeError, r"include: count is torch.int64; only floating-point"),
        ({"include": "net.0", "exclude": "net"}, ValueError, r"net.0.weight is both in include and in exclude"),
        ({"exclude": "*"}, ValueError, r"no trainable floating-point parameter to average .*excluded"),
    ],
    ids=str,
)
def test_wrong_choices_are_one_line(options, error, message):
    with pytest.raises(error, match=message) as raised:
        LAWA(Student(), interval=1, window=2, **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("included", [False, True])
def test_a_teacher_is_averaged_if_asked_for_and_told_if_not(included, caplog):
    model = Student()
    ema = EMA(model, decay=0.5, include="teacher" if included else None)
    states = []
    for step in (1, 2):
        randomise(model, step)
        ema.update(step)
        states.append((step, {k: v.clone() for k, v in model.state_dict().items()}))
    for _ in range(2):
        with ema.averaged():
            value = model.teacher.weight.clone()
    weight = (states[0][1]["teacher.weight"] + states[1][1]["teacher.weight"]) / 2
    torch.testing.assert_close(value, weight if included else states[1][1]["teacher.weight"])
    told = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(told) == (not included)
    assert included or "2 frozen parameters are not averaged, but they change (teacher.weight)" in told[0]

    # Offline, where a state dict does not tell frozen from trained: the same, asked for in the same words.
    layout = layout_of(states[0][1])
    latest = offline.latest_of(layout, exclude=["center", *([] if included else ["teacher"])])
    wanted = [(averages.EMA(decay=0.5), 2)]
    (result,) = offline.Plan(wanted, [1, 2], latest=latest).run(iter(states))
    with ema.averaged():
        for name, tensor in model.state_dict().items():
            np.testing.assert_array_equal(result.state[name], tensor, err_msg=name)


def deep_spectral_net(norm):
    """As such nets become: singular values alike, so that the vectors wander while the weights hardly move."""
    torch.manual_seed(0)
    layers = [nn.Linear(16, 16, bias=False) for _ in range(20)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight)
    return nn.Sequential(*[norm(layer) for layer in layers])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_the_vectors_of_spectral_norm_are_not_averaged(norm):
    """The mean of unit vectors is none: averaged, they make the output of twenty layers many times too large."""
    model = deep_spectral_net(norm)
    ema = EMA(model, decay=0.99)
    wrong = EMA(model, decay=0.99, include=["*_u", "*_v"])
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
    means = [parameter.detach().clone() for parameter in model.parameters()]
    states = []
    for step in range(1, 60):
        generator = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for parameter, mean in zip(model.parameters(), means, strict=True):
                parameter.copy_(mean + 0.02 * torch.randn(parameter.shape, generator=generator))
        model(x)
        ema.update(step)
        wrong.update(step)
        states.append((step, {k: v.clone() for k, v in model.state_dict().items()}))
    model.eval()
    raw = model(x).norm().item()
    with ema.averaged():
        averaged = model(x).norm().item()
        expected = {k: v.clone() for k, v in model.state_dict().items()}
    assert averaged == pytest.approx(raw, rel=0.5)
    with wrong.averaged():
        assert model(x).norm().item() > 5 * raw
    (result,) = offline.Plan([(averages.EMA(decay=0.99), 59)], range(1, 60)).run(iter(states))
    for name, tensor in expected.items():
        np.testing.assert_array_equal(result.state[name], tensor, err_msg=name)


def test_masks_of_pruning_stay_masks():
    model = nn.Linear(4, 4)
    prune.random_unstructured(model, "weight", 0.5)
    lawa = LAWA(model, interval=1, window=2)
    states = []
    for step in (1, 2):
        model.weight_mask.copy_(torch.rand(4, 4, generator=torch.Generator().manual_seed(step)).round())
        lawa.update(step)
        states.append((step, {k: v.clone() for k, v in model.state_dict().items()}))
    (result,) = offline.Plan([(averages.LAWA(window=2), 2)], [1, 2]).run(iter(states))
    with lawa.averaged():
        for mask in (model.weight_mask, result.state["weight_mask"]):
            assert set(mask.unique().tolist()) <= {0.0, 1.0}
            assert torch.equal(mask, states[1][1]["weight_mask"])


class Quantised(nn.Module):
    def __init__(self, scale_is_parameter):
        super().__init__()
        self.register_buffer("weight", torch.zeros(1, dtype=torch.int8))
        if scale_is_parameter:
            self.scale = nn.Parameter(torch.zeros(1))
        else:
            self.register_buffer("scale", torch.zeros(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def value(self):
        return (self.weight * self.scale).item()


@pytest.mark.parametrize("scale_is_parameter", [False, True])
def test_scales_go_with_the_integers_that_they_belong_to(scale_is_parameter):
    model = Quantised(scale_is_parameter)
    lawa = LAWA(model, interval=1, window=2)
    states = []
    for step, (weight, scale) in enumerate([(10, 0.04), (15, 0.1)], start=1):
        model.weight.fill_(weight)
        model.scale.data.fill_(scale)
        model.bias.data.fill_(step)
        lawa.update(step)
        states.append((step, {k: v.clone() for k, v in model.state_dict().items()}))
    (result,) = offline.Plan([(averages.LAWA(window=2), 2)], [1, 2]).run(iter(states))
    assert (result.state["weight"] * result.state["scale"]).item() == pytest.approx(1.5)
    with lawa.averaged():
        assert model.value() == pytest.approx(1.5)  # not 15 x .07 = 1.05
        assert model.bias.item() == result.state["bias"].item() == 1.5


def test_observers_that_are_reset_to_infinity_stop_nothing():
    from torch.ao.quantization import FakeQuantize, MinMaxObserver

    model = nn.Sequential(nn.Linear(2, 2), FakeQuantize(MinMaxObserver))
    ema = EMA(model, decay=0.5)
    assert ema.update(1)
    model[1].activation_post_process.reset_min_max_vals()
    assert ema.update(2)
    assert model[1].activation_post_process.min_val.isinf()
    with ema.averaged():
        assert model[1].activation_post_process.min_val.isinf()
    (result,) = offline.Plan([(averages.EMA(decay=0.5), 2)], [1, 2]).run(
        (step, {**model.state_dict(), "1.activation_post_process.min_val": torch.tensor(value)})
        for step, value in ((1, 0.5), (2, float("inf")))
    )
    assert result.state["1.activation_post_process.min_val"].isinf()


FLOATS = [
    torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64,
    torch.complex128,
]  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("size", [3, 40_000])
def test_every_type_of_number_that_torch_has(dtype, size):
    model = nn.Module()
    model.w = nn.Parameter(torch.zeros(size, dtype=dtype))
    model.plain = nn.Parameter(torch.zeros(2))
    averagers = [
        LAWA(model, interval=1, window=2),
        EMA(model, decay=0.5),
        Averages(model, [averages.LAWA(window=2, interval=1)]),
    ]
    values = [1.0 + 2.0j, 3.0 - 4.0j] if dtype.is_complex else [1.0, 3.0]
    states = []
    for step, value in enumerate(values, start=1):
        model.w.data.copy_(torch.full((size,), value))
        model.plain.data.fill_(float(step))
        assert all(averager.update(step) for averager in averagers)
        states.append((step, {k: v.detach().clone() for k, v in model.state_dict().items()}))
    expected = torch.full((size,), sum(values) / 2).to(dtype)
    for averager in averagers:
        with averager.averaged():
            assert torch.equal(model.w.data.view(torch.uint8), expected.view(torch.uint8))
        assert torch.equal(averager.average_state_dict()["w"].view(torch.uint8), expected.view(torch.uint8))
        assert torch.equal(model.w.data.view(torch.uint8), states[1][1]["w"].view(torch.uint8))
        other = type(averager)(model, **arguments_of(averager))
        other.load_state_dict(averager.state_dict())
        assert torch.equal(other.average_state_dict()["w"].view(torch.uint8), expected.view(torch.uint8))
    (result,) = offline.Plan([(averages.LAWA(window=2), 2)], [1, 2]).run(iter(states))
    assert torch.equal(result.state["w"].view(torch.uint8), expected.view(torch.uint8))
    if not dtype.is_complex and dtype.itemsize > 1:
        model.w.data[-1] = float("nan")
        assert not any(averager.update(3) for averager in averagers)


def arguments_of(averager):
    if isinstance(averager, Averages):
        return {"averages": averager.averages}
    return {"interval": 1, "window": 2} if isinstance(averager, LAWA) else {"decay": 0.5}


def test_types_that_torch_cannot_convert_are_one_line():
    model = nn.Module()
    model.good = nn.Parameter(torch.zeros(2))
    if hasattr(torch, "float4_e2m1fn_x2"):  # since torch 2.8
        model.bad = nn.Parameter(torch.zeros(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2))
        message = r'bad is torch.float4_e2m1fn_x2, which torch cannot convert: leave it out by exclude="bad"'
    else:
        model.bad = nn.Parameter(torch.zeros(2, 2).to_sparse())
        message = r'bad is a torch.sparse_coo tensor, .*exclude="bad"'
    with pytest.raises(TypeError, match=message):
        EMA(model, decay=0.5)
    assert EMA(model, decay=0.5, exclude="bad").update(1)
    sparse = nn.Module()
    sparse.bad = nn.Parameter(torch.zeros(2, 2).to_sparse())
    with pytest.raises(TypeError, match=r"bad is a torch.sparse_coo tensor"):
        LAWA(sparse, interval=1, window=1)


def test_frozen_parameters_that_cannot_be_read_are_no_matter():
    """Such as weights that are packed, or kept elsewhere."""
    model = nn.Module()
    model.trained = nn.Linear(2, 2)
    model.elsewhere = nn.Linear(2, 2, device="meta").requires_grad_(False)
    model.sparse = nn.Parameter(torch.eye(2).to_sparse(), requires_grad=False)
    model.complex = nn.Parameter(torch.ones(2, dtype=torch.complex64), requires_grad=False)
    if hasattr(torch, "float4_e2m1fn_x2"):
        packed = torch.zeros(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
        model.packed = nn.Parameter(packed, requires_grad=False)
    lawa = LAWA(model, interval=1, window=2)
    assert lawa.update(1)
    assert lawa.update(2)
    assert lawa.swap_in()


def test_a_mask_of_bytes_makes_no_scale_of_a_parameter():
    model = nn.Module()
    model.logit_scale = nn.Parameter(torch.zeros(1))
    model.register_buffer("bias", torch.ones(2, dtype=torch.uint8))
    model.register_buffer("attention_mask", torch.ones(2, dtype=torch.uint8))
    assert names_of(model) == ["logit_scale"]


def test_the_tensor_that_is_not_finite_is_named(caplog):
    model = Student()
    ema = EMA(model, decay=0.5)
    ema.update(1)
    model.net[1].running_var.fill_(float("inf"))
    assert not ema.update(2)
    assert "step 2: weights are not finite and are not collected (net.1.running_var)" in caplog.text


@settings(max_examples=60, deadline=None)
@given(st.sets(st.sampled_from(NET + TEACHER + ["center"])), st.sets(st.sampled_from(NET)))
def test_what_is_chosen_is_averaged_and_nothing_else_moves(include, exclude):
    include -= exclude
    model = Student()
    expected = [name for name in names_of(model, include="*teacher*") if name not in exclude]
    expected = [n for n in expected if n in include or not n.startswith("teacher")] + sorted(include & {"center"})
    if not expected:
        return
    lawa = LAWA(model, interval=1, window=2, include=sorted(include) or None, exclude=sorted(exclude) or None)
    for step in (1, 2):
        randomise(model, step)
        lawa.update(step)
    raw = {k: v.clone() for k, v in model.state_dict().items()}
    with lawa.averaged():
        moved = {k for k, v in model.state_dict().items() if not torch.equal(v, raw[k])}
    assert moved == set(expected)
    assert all(torch.equal(v, raw[k]) for k, v in model.state_dict().items())


def test_floats_of_a_plain_model_are_all_averaged():
    model = scalar_model()
    lawa = LAWA(model, interval=1, window=2)
    feed(lawa, model, [1.0, 3.0])
    assert average_of(lawa, model) == 2.0
    assert len(floats(model)) == 1

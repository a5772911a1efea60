"""The submissions' parts against slow references, and their hyperparameters."""

import importlib
import json
import math
import subprocess
import sys
import warnings
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from miniperf import random_utils, spec, submission
from submissions.recipe import schedules
from submissions.recipe.batch_sizes import get_batch_size
from submissions.recipe.optimizers import matrices
from submissions.recipe.pytorch import adamw, nadamw
from submissions.recipe.pytorch.nadamw import NadamW
from submissions.recipe.pytorch.schedules import (
    warmup_constant,
    warmup_cosine,
    warmup_inverse_sqrt,
    warmup_stable_decay,
)
from tests.support import reference
from weight_averaging.errors import UsageError

NAMES = [
    f"{name}{decay}"
    for name in ("nadamw", "lawa", "ema", "adamw", "adamw_lawa", "adamw_ema")
    for decay in ("", "_no_decay")
] + ["nadamw_wsd", "lawa_wsd", "ema_wsd", "nadamw_inverse_sqrt"]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 1000),
    st.integers(1, 12),
    st.sampled_from([0.0, 0.5, 0.9, 0.98]),
    st.sampled_from([0.6, 0.99, 0.999]),
    st.sampled_from([0.0, 0.1]),
)
def test_nadamw_follows_its_equations(seed, steps, b1, b2, decay):
    torch.manual_seed(seed)
    parameter = nn.Parameter(torch.randn(31))
    gradients = [torch.randn(31) for _ in range(steps)]
    expected = reference.nadamw(parameter.detach().numpy(), [g.numpy() for g in gradients], 1e-2, b1, b2, decay)
    optimizer = NadamW([parameter, nn.Parameter(torch.ones(1))], lr=1e-2, betas=(b1, b2), weight_decay=decay)
    for gradient in gradients:  # the second parameter never has a gradient
        parameter.grad = gradient
        optimizer.step()
    np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=2e-6, atol=2e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 6), st.sampled_from([1.0, 8.0, 65536.0]), st.booleans())
def test_nadamw_under_grad_scaler_trains_as_without(seed, steps, scale, unscaled):
    """An overflow leaves the step out, moments and all."""
    results = []
    for scaled in (True, False):
        torch.manual_seed(seed)
        parameter = nn.Parameter(torch.randn(7))
        optimizer = NadamW([parameter], lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scaled)
        for step in range(steps):
            overflows = step == 1
            gradient = torch.randn(7)
            if overflows and not scaled:
                continue
            optimizer.zero_grad()
            scaler.scale((parameter * gradient).sum() * (float("inf") if overflows else 1.0)).backward()
            if unscaled:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        results.append(parameter.detach())
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


def test_nadamw_is_not_adamw():
    results = []
    for kind in (NadamW, torch.optim.AdamW):
        torch.manual_seed(0)
        parameter = nn.Parameter(torch.randn(5))
        optimizer = kind([parameter], lr=0.1, betas=(0.9, 0.99), weight_decay=0.0)
        for _ in range(3):
            parameter.grad = torch.randn(5)
            optimizer.step()
        results.append(parameter.detach().clone())
    assert (results[0] - results[1]).abs().max() > 1e-3


def test_a_restored_nadamw_goes_on_bit_for_bit():
    def train(optimizer, parameter, first, last):
        for step in range(first, last):
            parameter.grad = torch.randn(7, generator=torch.Generator().manual_seed(step))
            optimizer.step()

    make = lambda p: NadamW([p], lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1)  # noqa: E731
    whole, broken = nn.Parameter(torch.ones(7)), nn.Parameter(torch.ones(7))
    optimizer = make(whole)
    train(optimizer, whole, 0, 6)
    first = make(broken)
    train(first, broken, 0, 3)
    second = make(broken)
    second.load_state_dict(first.state_dict())
    train(second, broken, 3, 6)
    assert torch.equal(whole, broken)


@pytest.mark.parametrize("warmup", [0.0, 0.1])
@pytest.mark.parametrize("final", [None, 0.1])
@pytest.mark.parametrize("fraction", [None, 0.5])
def test_the_cosine_schedule_in_closed_form(warmup, final, fraction):
    options = {"final_lr_factor": final, "schedule_fraction": fraction}
    given = {name: value for name, value in options.items() if value is not None}
    rates = rates_of(warmup_cosine, SimpleNamespace(warmup_factor=warmup, **given))
    total = 100 if fraction is None else 50
    steps, low = int(warmup * total), final or 0.0
    for t, rate in enumerate(rates):
        if t < steps:
            expected = t / steps
        else:
            expected = low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1, (t - steps) / (total - steps))))
        assert rate == pytest.approx(2.0 * expected, abs=1e-9), t


def test_without_decay_the_rate_stays_at_the_top():
    rates = rates_of(warmup_constant, SimpleNamespace(warmup_factor=0.1))
    assert rates[:11] == pytest.approx([2.0 * t / 10 for t in range(11)], abs=1e-9)
    assert set(rates[10:]) == {2.0}


@pytest.mark.parametrize(("warmup", "share", "final"), [(0.1, None, 0.0), (0.0, 0.5, 0.1), (0.3, 1.0, 0.0)])
def test_a_constant_rate_with_a_short_decay_in_closed_form(warmup, share, final):
    given = {} if share is None else {"decay_share": share}
    rates = rates_of(warmup_stable_decay, SimpleNamespace(warmup_factor=warmup, final_lr_factor=final, **given))
    up = round(100 * warmup)
    begin = max(up, 100 - round(100 * (share or 0.2)))
    for t, rate in enumerate(rates):
        if t < up:
            expected = t / up
        elif t <= begin:
            expected = 1.0
        else:
            expected = final + (1 - final) * (1 - math.sqrt(min(1, (t - begin) / (100 - begin))))
        assert rate == pytest.approx(2.0 * expected, abs=1e-9), t


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.25])
def test_a_rate_that_falls_with_the_root_of_the_updates_in_closed_form(warmup):
    rates = rates_of(warmup_inverse_sqrt, SimpleNamespace(warmup_factor=warmup))
    up = round(100 * warmup)
    for t, rate in enumerate(rates):
        expected = t / up if t < up else (max(1, up) / max(1, t)) ** 0.5
        assert rate == pytest.approx(2.0 * expected, abs=1e-9), t
    at = [schedules.warmup_inverse_sqrt(150, hint, SimpleNamespace(warmup_factor=10 / hint)) for hint in (100, 9000)]
    assert at[0] == at[1]  # but for the warmup it does not know how long the run will be


def rates_of(schedule, hyperparameters) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # torch 2.5's SequentialLR calls what it deprecates.
        warnings.filterwarnings("ignore", "The epoch parameter in `scheduler.step")
        scheduler = schedule(optimizer, hyperparameters, 100)
        rates = []
        for _ in range(110):  # ten beyond the step_hint
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return rates


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(
        [
            (schedules.warmup_cosine, warmup_cosine),
            (schedules.warmup_constant, warmup_constant),
            (schedules.warmup_stable_decay, warmup_stable_decay),
            (schedules.warmup_inverse_sqrt, warmup_inverse_sqrt),
        ]
    ),
    st.floats(0.0, 0.9),
    st.floats(0.0, 1.0),
    st.floats(0.05, 1.0),
)
def test_the_schedule_as_a_function_is_that_of_pytorch(pair, warmup, final, fraction):
    function, scheduler = pair
    hyperparameters = SimpleNamespace(warmup_factor=warmup, final_lr_factor=final, schedule_fraction=fraction)
    factors = [2.0 * function(step, 100, hyperparameters) for step in range(110)]
    assert rates_of(scheduler, hyperparameters) == pytest.approx(factors, abs=1e-9)


class Sample(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm, self.lstm = nn.Embedding(5, 4), nn.LayerNorm(4), nn.LSTM(4, 3)
        self.conv, self.attention = nn.Conv2d(2, 3, 3), nn.MultiheadAttention(4, 2)
        self.place = nn.Parameter(torch.ones(2, 4))


POINT = {"learning_rate": 1e-2, "one_minus_beta1": 0.1, "beta2": 0.95, "weight_decay": 0.5}


def test_adamw_decays_neither_the_scales_of_norms_nor_biases():
    model = Sample()
    model.unused = nn.Parameter(torch.ones(3))  # a scale without a gradient
    optimizer = adamw.build(model, SimpleNamespace(**POINT), step_hint=100)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)  # what moves now is decay alone
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {
        "embedding.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0", "conv.weight", "attention.in_proj_weight",
        "attention.out_proj.weight", "place",
    }  # fmt: skip
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    assert len(nadamw.build(model, SimpleNamespace(**POINT), step_hint=100).param_groups) == 1
    assert not matrices("bias", 2)  # flax's, of attention: [heads, width of a head]


@pytest.mark.parametrize("epsilon", [None, 1e-3])
def test_adamw_follows_its_equations(epsilon):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    theta = {name: p.detach().double() for name, p in model.named_parameters()}
    m, v = ({name: torch.zeros_like(x) for name, x in theta.items()} for _ in range(2))
    given_epsilon = {} if epsilon is None else {"epsilon": epsilon}
    optimizer = adamw.build(model, SimpleNamespace(**POINT, **given_epsilon), step_hint=100)
    for t in range(1, 6):
        for name, p in model.named_parameters():
            p.grad = torch.randn_like(p) * 1e-2
            g = p.grad.double()
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.95 * v[name] + 0.05 * g * g
            step = (m[name] / (1 - 0.9**t)) / ((v[name] / (1 - 0.95**t)).sqrt() + (epsilon or 1e-8))
            theta[name] = theta[name] * (1 - 1e-2 * 0.5 * (name == "weight")) - 1e-2 * step
        optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach().double(), theta[name], rtol=1e-5, atol=1e-6)


def test_batch_sizes_are_for_official_workloads_only():
    assert get_batch_size("criteo1tb") == 262_144
    with pytest.raises(ValueError, match="no batch size for the workload 'mini_criteo1tb'"):
        get_batch_size("mini_criteo1tb")


@pytest.mark.parametrize("name", NAMES)
def test_every_search_space_suits_its_submission(name):
    module = importlib.import_module(f"submissions.pytorch.{name}.submission")
    for folder in ("tuning_search_spaces", "tuning_search_spaces/miniperf"):
        points = json.loads(Path(folder, f"{name}.json").read_text())
        assert isinstance(points, list)
        for point in points:
            module.check_hyperparameters(namedtuple("H", point)(**point), 10_000)
    assert len(json.loads(Path("tuning_search_spaces", f"{name}.json").read_text())) == 5


GOOD = {"learning_rate": 1e-3, "one_minus_beta1": 0.1, "beta2": 0.99, "weight_decay": 0.1, "warmup_factor": 0.02}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("nadamw", {"beta2": None}, "the hyperparameter beta2 is missing"),
        ("nadamw", {"lable_smoothing": 0.1}, "takes no hyperparameter lable_smoothing"),
        ("nadamw", {"averaging_horizon": 0.1}, "takes no hyperparameter averaging_horizon"),
        ("nadamw", {"learning_rate": "1e-3"}, "learning_rate must be a number > 0, not '1e-3'"),
        ("nadamw", {"warmup_factor": 1.0}, r"warmup_factor must be a number in \[0, 1\)"),
        ("nadamw", {"epsilon": 1e-8}, "takes no hyperparameter epsilon"),
        ("adamw", {"epsilon": 0}, "epsilon must be a number > 0"),
        ("adamw", {"beta2": None}, "the hyperparameter beta2 is missing"),
        ("adamw_ema", {"averaging_interval": 3, "averaging_window": 2}, "or averaging_interval and averaging_decay"),
        ("lawa", {}, "give either averaging_horizon and averaging_window, or averaging_interval and averaging_window"),
        ("lawa", {"averaging_horizon": 0.1, "averaging_window": 2, "averaging_interval": 3}, "this has averaging_"),
        ("lawa", {"averaging_interval": 0, "averaging_window": 2}, "averaging_interval must be a whole number >= 1"),
        ("lawa", {"averaging_interval": 3, "averaging_window": 0}, "averaging_window must be a whole number >= 1"),
        ("lawa", {"averaging_horizon": 0, "averaging_window": 2}, r"averaging_horizon must be a share of training"),
        ("ema", {"averaging_interval": 3, "averaging_window": 2}, "or averaging_interval and averaging_decay"),
        ("ema", {"averaging_interval": 3, "averaging_decay": 1.0}, r"averaging_decay must be a number in \[0, 1\)"),
        ("ema", {"averaging_interval": 3, "averaging_decay": "0.9"}, r"not '0.9' \(a string: drop the quotes\)"),
    ],
)
def test_bad_hyperparameters_are_named_in_one_line(name, changes, message):
    module = importlib.import_module(f"submissions.pytorch.{name}.submission")
    point = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    with pytest.raises(ValueError, match=message) as error:
        module.check_hyperparameters(namedtuple("H", point)(**point), 1000)
    assert "\n" not in str(error.value)


def test_the_library_imports_nothing_of_algoperf():
    code = (
        "import sys, weight_averaging.torch; "
        "print([m for m in sys.modules if m.split('.')[0] in ('absl', 'algoperf', 'miniperf', 'submissions')])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


OTHERS = """
from algoperf import spec
from algoperf.pytorch_utils import pytorch_setup
import algoperf.random_utils as prng

def init_optimizer_state(workload: spec.Workload, model_params: spec.ParameterContainer, *rest) -> spec.OptimizerState:
    return {"mode": spec.ForwardPassMode.TRAIN, "ddp": pytorch_setup()[0], "split": prng.split}

def update_params(*args) -> spec.UpdateReturn: ...
def data_selection(*args) -> dict[str, spec.Tensor]: ...
def get_batch_size(name: str) -> int: ...
"""


@pytest.mark.parametrize("installed", [False, True])
def test_a_submission_of_others_that_imports_algoperf_gets_this_harness(tmp_path, monkeypatch, installed):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "algoperf"]:
        monkeypatch.delitem(sys.modules, name)
    if installed:  # whose enums are others
        (tmp_path / "algoperf").mkdir()
        (tmp_path / "algoperf" / "__init__.py").write_text("raise ImportError('not this one')")
    name = f"others_{installed}"
    (tmp_path / f"{name}.py").write_text(OTHERS)
    module = submission.load(f"{name}.py")
    made = module.init_optimizer_state(None, None)
    assert made["mode"] is spec.ForwardPassMode.TRAIN
    assert made["split"] is random_utils.split
    assert made["ddp"] is False
    assert "algoperf" not in sys.modules


@pytest.mark.parametrize("line", ["import algoperf.data_utils", "from algoperf import data_utils"])
def test_what_miniperf_has_no_stand_in_for_is_one_line(tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "algoperf"]:
        monkeypatch.delitem(sys.modules, name)
    name = f"wants_more_{line[:4].strip()}"
    (tmp_path / f"{name}.py").write_text(f"{line}\n")
    says = rf"^{name}\.py imports of algoperf what miniperf does not have: .*data_utils.*; run it under the"
    with pytest.raises(UsageError, match=says):
        submission.load(f"{name}.py")

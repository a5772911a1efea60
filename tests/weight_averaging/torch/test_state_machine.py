"""Averagers through random sequences of everything that can happen to them, against averages in float64."""

import copy
import logging
import pickle
import tempfile

import numpy as np
import torch
import torch.distributed as dist
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support import reference
from tests.support.small_models import floats, model_of, randomise, saved
from weight_averaging import averages
from weight_averaging.torch import EMA, LAWA, Averager, Averages
from weight_averaging.torch.model import blocks

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
GRID = [
    averages.LAWA(window=2, interval=2),
    averages.LAWA(window=4, interval=2),
    averages.EMA(decay=0.8, interval=1),
]


class Keeping(torch.nn.Linear):
    """Keeps its weights in evaluation mode until `train()`, as timm's LeViT does its attention biases."""

    kept = None

    def train(self, mode=True):
        self.kept = None
        return super().train(mode)

    def used(self) -> torch.Tensor:
        if not self.training and self.kept is None:
            self.kept = self.weight.detach().clone()
        return self.weight if self.training else self.kept


def named(model) -> dict[str, np.ndarray]:
    state = model.state_dict()
    return {name: t.double().numpy().copy() for name, t in state.items() if t.is_floating_point()}


class Machine(RuleBasedStateMachine):
    """One model and its averager; `snapshots` and `raw` are what the reference knows."""

    @initialize(
        kind=st.sampled_from(["lawa", "ema", "grid"]),
        dtype=st.sampled_from(DTYPES),
        block=st.sampled_from([7, 1 << 21]),
        interval=st.integers(1, 3),
        start=st.integers(0, 4),
    )
    def begin(self, kind, dtype, block, interval, start):
        self.block = blocks.CPU_BLOCK
        blocks.CPU_BLOCK = block
        self.kind, self.interval, self.start = kind, interval, start
        self.model = model_of(dtype=dtype)
        self.model[2].__class__ = Keeping
        self.group = None
        self.averager = self.make(self.model)
        self.step = 0
        self.snapshots: list[tuple[int, dict[str, np.ndarray]]] = []  # all that were finite, with their steps
        self.raw = named(self.model)
        self.coarse = dtype == torch.bfloat16  # whether a bfloat16 model was ever averaged
        if start == 0 and kind != "grid":
            assert self.averager.update(0)
            self.snapshots.append((0, named(self.model)))

    def make(self, model) -> Averager:
        if self.kind == "lawa":
            return LAWA(model, interval=self.interval, window=3, start=self.start, process_group=self.group)
        if self.kind == "ema":
            return EMA(model, decay=0.7, interval=self.interval, start=self.start, process_group=self.group)
        return Averages(model, GRID, process_group=self.group)

    def expected(self) -> dict[str, np.ndarray] | None:
        average = getattr(self.averager, "_selected", None)
        if average is None:
            average = averages.LAWA(window=3, interval=self.interval, start=self.start)
            if self.kind == "ema":
                average = averages.EMA(decay=0.7, interval=self.interval, start=self.start)
        taken = [v for s, v in self.snapshots if s >= average.start and s % average.interval == 0]
        result = {}
        for name in self.raw:
            values = [snapshot[name] for snapshot in taken]
            if isinstance(average, averages.LAWA):
                result[name] = reference.lawa(values, average.window)
            else:
                result[name] = reference.ema(values, average.decay)
        return None if next(iter(result.values())) is None else result

    @precondition(lambda self: not self.averager.swapped)
    @rule(finite=st.sampled_from([True, True, True, False]), skip=st.integers(0, 2))
    def update(self, finite, skip):
        self.step += 1 + skip
        self.model.train()
        randomise(self.model, self.step)
        if finite:
            self.averager.update(self.step)
            self.snapshots.append((self.step, named(self.model)))
        else:
            floats(self.model)[-1].detach().view(-1)[-1] = float("nan")
            assert not self.averager.update(self.step)
            randomise(self.model, self.step)
        self.raw = named(self.model)

    @rule(training=st.booleans())
    def set_mode(self, training):
        self.model.train(training)

    @precondition(lambda self: self.expected() is not None)
    @rule()
    def adopt(self):
        self.averager.adopt()
        self.raw = named(self.model)
        self.check(self.raw, self.expected())

    @rule(inference=st.booleans())
    def swap_in(self, inference):
        with torch.inference_mode(inference):
            assert self.averager.swap_in() == (self.expected() is not None)

    @rule()
    def swap_out(self):
        assert self.averager.swap_out() == self.was_swapped()

    def was_swapped(self):
        result, self.last_swapped = self.last_swapped, False
        return result

    @precondition(lambda self: self.kind == "grid" and not self.averager.swapped)
    @rule(average=st.sampled_from(GRID))
    def select(self, average):
        self.averager.select(average)

    @rule(seed=st.integers(0, 3), group=st.booleans())
    def save_and_load(self, seed, group):
        """In a fresh model, on one rank of its own or in a group: the state is the same."""
        weights_then, state = copy.deepcopy(self.model.state_dict()), saved(self.averager)
        selected = getattr(self.averager, "_selected", None)
        self.averager.swap_out()
        self.model = copy.deepcopy(self.model).train()  # of the same build
        randomise(self.model, seed)
        self.model.load_state_dict(weights_then)
        self.group = dist.group.WORLD if group else None
        self.averager = self.make(self.model)
        self.averager.load_state_dict(state)
        if selected is not None:
            self.averager.select(selected)

    @rule(copied=st.booleans())
    def load_from_itself(self, copied):
        """An average in the model is taken out first."""
        state = self.averager.state_dict()
        self.averager.load_state_dict(copy.deepcopy(state) if copied else state)
        self.last_swapped = False

    @precondition(lambda self: self.group is None)
    @rule(pickled=st.booleans())
    def copy_all(self, pickled):
        pair = (self.model, self.averager)
        self.model, self.averager = pickle.loads(pickle.dumps(pair)) if pickled else copy.deepcopy(pair)

    @rule()
    def hand_out(self):
        expected, other = self.expected(), copy.deepcopy(self.model)
        assert self.averager.copy_to(other) == (expected is not None)
        assert torch.equal(other[2].used(), other[2].weight)
        if expected is not None:
            self.check(named(other), expected)
            state = self.averager.average_state_dict()
            self.check({name: state[name].double().numpy() for name in expected}, expected)

    @rule()
    def another_averager(self):
        """It cannot take part while the average is in the model."""
        other = EMA(self.model, decay=0.5)
        try:
            other.update(1)
        except RuntimeError:
            assert self.averager.swapped
        else:
            assert not self.averager.swapped

    @precondition(lambda self: not self.averager.swapped)
    @rule(dtype=st.sampled_from(DTYPES))
    def change_type(self, dtype):
        self.model.train().to(dtype)
        self.raw = named(self.model)
        self.coarse |= dtype == torch.bfloat16

    @precondition(lambda self: not self.averager.swapped)
    @rule(change=st.sampled_from(["grow", "add", "remove", "replace", "freeze", "rename"]))
    def change_model(self, change):
        """What is new counts in all snapshots as it is now; the others go on."""
        dtype = next(self.model.parameters()).dtype
        new = {}
        if change == "grow":
            width = self.model[2].weight.shape[0] + 1
            self.model[2] = Keeping(5, width, bias=False, dtype=dtype).train(self.model.training)
            new = {"2.weight"}
        elif change == "add":
            self.model.add_module(str(len(self.model)), torch.nn.Linear(2, 1, dtype=dtype))
            new = {f"{len(self.model) - 1}.weight", f"{len(self.model) - 1}.bias"}
        elif change == "remove" and len(self.model) > 3:
            del self.model[-1]
        elif change == "replace":
            self.model[0] = torch.nn.Linear(3, 5, dtype=dtype)
        elif change == "freeze":
            self.model[0].requires_grad_(not self.model[0].weight.requires_grad)
        elif change == "rename" and "0" in self.model._modules:
            layer = self.model[1]
            layer.register_parameter("gain", layer._parameters.pop("weight")) if "weight" in layer._parameters else None
            self.rename("1.weight", "1.gain")
        self.averager.swap_in()  # looks at the model
        self.averager.swap_out()
        self.raw = named(self.model)
        for _, snapshot in self.snapshots:
            snapshot |= {name: self.raw[name] for name in new}

    def rename(self, old, new):
        for _, snapshot in self.snapshots:
            if old in snapshot:
                snapshot[new] = snapshot.pop(old)

    def check(self, found, expected):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, atol=3e-2 if self.coarse else 5e-6, err_msg=name)

    @invariant()
    def model_holds_what_it_should(self):
        if self.averager.swapped:
            self.check(named(self.model), self.expected())
        else:
            found = named(self.model)
            assert found.keys() == self.raw.keys()
            for name, value in self.raw.items():
                np.testing.assert_array_equal(found[name], value, err_msg=name)
        assert torch.equal(self.model[2].used(), self.model[2].weight)
        assert self.averager.step == self.step
        self.last_swapped = self.averager.swapped

    def teardown(self):
        blocks.CPU_BLOCK = self.block


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


class TestAveragers(Machine.TestCase):
    @classmethod
    def setUpClass(cls):
        logging.getLogger("weight_averaging").setLevel(logging.ERROR)  # thousands of refused snapshots
        cls.folder = tempfile.TemporaryDirectory()
        dist.init_process_group("gloo", init_method=f"file://{cls.folder.name}/store", rank=0, world_size=1)

    @classmethod
    def tearDownClass(cls):
        logging.getLogger("weight_averaging").setLevel(logging.NOTSET)
        dist.destroy_process_group()
        cls.folder.cleanup()

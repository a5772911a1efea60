"""Averagers through random sequences of everything that can happen to them, against averages in float64."""

import logging
import tempfile

import numpy as np
import torch
import torch.distributed as dist
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests import reference
from tests.small_models import flat, floats, model_of, randomise, saved
from weight_averaging import averages
from weight_averaging.torch import EMA, LAWA, Averager, Averages, blocks

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
GRID = [
    averages.LAWA(window=2, interval=2),
    averages.LAWA(window=4, interval=2),
    averages.EMA(decay=0.8, interval=1),
]


class Machine(RuleBasedStateMachine):
    """One model and its averager; `snapshots` and `raw` are what the reference knows."""

    @initialize(
        kind=st.sampled_from(["lawa", "ema", "grid"]),
        dtype=st.sampled_from(DTYPES),
        block=st.sampled_from([7, 1 << 21]),
        interval=st.integers(1, 3),
        start=st.integers(1, 4),
    )
    def begin(self, kind, dtype, block, interval, start):
        self.block = blocks.CPU_BLOCK
        blocks.CPU_BLOCK = block
        self.kind, self.interval, self.start = kind, interval, start
        self.model = model_of(dtype=dtype)
        self.group = None
        self.averager = self.make(self.model)
        self.step = 0
        self.snapshots: list[tuple[int, np.ndarray]] = []  # all that were finite, with their steps
        self.raw = flat(self.model)
        self.coarse = dtype == torch.bfloat16  # whether a bfloat16 model was ever averaged

    def make(self, model) -> Averager:
        if self.kind == "lawa":
            return LAWA(model, interval=self.interval, window=3, start=self.start, process_group=self.group)
        if self.kind == "ema":
            return EMA(model, decay=0.7, interval=self.interval, start=self.start, process_group=self.group)
        return Averages(model, GRID, process_group=self.group)

    def expected(self) -> np.ndarray | None:
        average = getattr(self.averager, "_selected", None)
        if average is None:
            average = averages.LAWA(window=3, interval=self.interval, start=self.start)
            if self.kind == "ema":
                average = averages.EMA(decay=0.7, interval=self.interval, start=self.start)
        taken = [v for s, v in self.snapshots if s >= average.start and s % average.interval == 0]
        if isinstance(average, averages.LAWA):
            return reference.lawa(taken, average.window)
        return reference.ema(taken, average.decay)

    @precondition(lambda self: not self.averager.swapped)
    @rule(finite=st.sampled_from([True, True, True, False]), skip=st.integers(0, 2))
    def update(self, finite, skip):
        self.step += 1 + skip
        randomise(self.model, self.step)
        if finite:
            self.averager.update(self.step)
            self.snapshots.append((self.step, flat(self.model)))
        else:
            floats(self.model)[-1].detach().view(-1)[-1] = float("nan")
            assert not self.averager.update(self.step)
            randomise(self.model, self.step)
        self.raw = flat(self.model)

    @rule()
    def swap_in(self):
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
        weights_then, state = self.model.state_dict(), saved(self.averager)
        selected = getattr(self.averager, "_selected", None)
        self.model = model_of(seed=seed, dtype=next(self.model.parameters()).dtype)
        self.model.load_state_dict(weights_then)
        self.group = dist.group.WORLD if group else None
        self.averager = self.make(self.model)
        self.averager.load_state_dict(state)
        if selected is not None:
            self.averager.select(selected)

    @precondition(lambda self: not self.averager.swapped)
    @rule(dtype=st.sampled_from(DTYPES))
    def change_type(self, dtype):
        self.model.to(dtype)
        self.raw = flat(self.model)
        self.coarse |= dtype == torch.bfloat16

    @invariant()
    def model_holds_what_it_should(self):
        if self.averager.swapped:
            tolerance = 3e-2 if self.coarse else 5e-6
            np.testing.assert_allclose(flat(self.model), self.expected(), atol=tolerance)
        else:
            np.testing.assert_array_equal(flat(self.model), self.raw)
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

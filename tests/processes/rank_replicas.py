"""What several ranks check together of replicas; see rank_checks.py."""

import logging
import os
import random

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.processes.rank_shards import on_all_ranks, sharded_model
from tests.support import reference
from tests.support.small_models import flat, floats, model_of, randomise, saved, value_of
from weight_averaging import placement
from weight_averaging.averages import EMA as EMADescription
from weight_averaging.averages import LAWA as LAWADescription
from weight_averaging.torch import EMA, LAWA, Averages, collector


def replicas(when: str = "at once") -> None:
    """DDP: one window, the same average everywhere, whatever happens in between.

    Args:
        when: `"at once"` or, as on an accelerator, `"later"` a snapshot is known to be finite.
    """
    later = when == "later"
    collector.defers = lambda device: later
    group = dist.group.WORLD
    model = DistributedDataParallel(model_of())
    lawa = LAWA(model, interval=1, window=3, process_group=group)
    grid = Averages(
        model, [LAWADescription(window=2, interval=1), EMADescription(decay=0.5, interval=2)], process_group=group
    )
    alone = LAWA(model, interval=1, window=3)
    held = on_all_ranks(len(lawa._tracks[0].slots()))
    assert held == [3 + later] + [0] * (dist.get_world_size() - 1), f"windows held: {held}"

    choices = random.Random(0)  # the same on every rank
    snapshots, step = [], 0
    for _ in range(60):
        action = choices.choice(["update", "update", "update", "evaluate", "reload", "not finite"])
        if action == "update":
            step += 1
            randomise(model, step)
            snapshots.append(flat(model))
            assert lawa.update(step)
            assert alone.update(step)
            grid.update(step)
        elif action == "not finite":  # on one rank alone: all must leave it out
            step += 1
            raw = [p.detach().clone() for p in model.parameters()]
            if dist.get_rank() == dist.get_world_size() - 1:
                with torch.no_grad():
                    next(model.parameters()).view(-1)[0] = float("nan")
            assert lawa.update(step) is later
            assert grid.update(step) is later
            with torch.no_grad():
                torch._foreach_copy_(list(model.parameters()), raw)
            alone.step = step
            if choices.random() < 0.5:
                assert step not in lawa.snapshot_steps
        elif action == "reload":  # from the state of the first rank, as the official harness does
            states = on_all_ranks((saved(lawa), saved(grid)))
            lawa = LAWA(model, interval=1, window=3, process_group=group)
            grid = Averages(model, grid.averages, process_group=group)
            lawa.load_state_dict(states[0][0])
            grid.load_state_dict(states[0][1])
            if dist.get_rank() == 0 and len(snapshots):
                with pytest.raises(ValueError, match="a rank that holds no snapshots"):
                    lawa.load_state_dict(states[-1][0])
        else:
            raw = flat(model)
            value = value_of(lawa, model)
            for average in grid.averages:
                grid.select(average)
                values = on_all_ranks(value_of(grid, model).tobytes())
                assert len(set(values)) == 1, f"{average} differs between ranks"
            assert len(set(on_all_ranks(value.tobytes()))) == 1, "averages differ between ranks"
            np.testing.assert_array_equal(value, value_of(alone, model))
            expected = reference.lawa(snapshots, 3)
            np.testing.assert_allclose(value, raw if expected is None else expected, atol=1e-6)
            np.testing.assert_array_equal(flat(model), raw)


def host_ema_of_replicas() -> None:
    """In host memory the first rank holds it for all."""
    group = dist.group.WORLD
    model = DistributedDataParallel(model_of())
    ema = EMA(model, decay=0.5, placement="host", process_group=group)
    alone = EMA(model, decay=0.5)
    assert on_all_ranks(len(ema._tracks[0].slots())) == [1] + [0] * (dist.get_world_size() - 1)
    for step in range(1, 6):
        randomise(model, step)
        assert ema.update(step)
        assert alone.update(step)
        if step == 3:
            state = on_all_ranks(saved(ema))[0]
            ema = EMA(model, decay=0.5, placement="host", process_group=group)
            ema.load_state_dict(state)
    np.testing.assert_array_equal(value_of(ema, model), value_of(alone, model))
    for name, value in ema.average_state_dict().items():
        assert torch.equal(value, alone.average_state_dict()[name]), name
    other = model_of(seed=5)
    assert ema.copy_to(other)
    np.testing.assert_array_equal(flat(other), value_of(alone, model))


def statistics_of_replicas(placement: str) -> None:
    """Batch norm sees each rank's own batches, and the average is one."""
    model = DistributedDataParallel(model_of(), broadcast_buffers=False)
    grid = Averages(
        model,
        [EMADescription(decay=0.5, interval=1), LAWADescription(window=2, interval=1)],
        placement=placement,
        process_group=dist.group.WORLD,
    )
    raw = []
    for step in (1, 2, 3):
        randomise(model, step)
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.add_(dist.get_rank())
        assert grid.update(step)
        raw = flat(model)
    for average in grid.averages:
        grid.select(average)
        first, *others = on_all_ranks(value_of(grid, model))
        for other in others:
            np.testing.assert_array_equal(other, first)
        first, *others = on_all_ranks({name: t.tolist() for name, t in grid.average_state_dict().items()})
        assert all(other == first for other in others)
        copied = model_of(seed=5).double()
        assert grid.copy_to(copied)
        np.testing.assert_allclose(flat(copied), value_of(grid, model))
        np.testing.assert_array_equal(flat(model), raw)


def memory_of_ranks() -> None:
    """What all ranks of a machine take must fit, of shards; of replicas one holds it, or a warning says so."""
    os.environ["LOCAL_WORLD_SIZE"] = str(dist.get_world_size())
    placement.free_host_bytes = lambda: 100_000
    sharded, replica = sharded_model(), model_of()
    of_one = 4 * sum(t.to_local().numel() if hasattr(t, "to_local") else t.numel() for t in floats(sharded))
    assert LAWA(sharded, interval=1, window=40_000 // of_one)
    with pytest.raises(MemoryError, match="on each of 2 ranks here"):
        LAWA(sharded, interval=1, window=60_000 // of_one)
    window = 60_000 // (4 * sum(t.numel() for t in floats(replica)))
    with Warned() as warned:
        assert LAWA(replica, interval=1, window=window, process_group=dist.group.WORLD)
        assert not warned.text
        assert LAWA(replica, interval=1, window=window)
    assert "on each of 2 ranks here, if all make one" in warned.text
    del os.environ["LOCAL_WORLD_SIZE"]


class Warned(logging.Handler):
    """What the library warns of in a block."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += record.getMessage()

    def __enter__(self) -> "Warned":
        self.setLevel(logging.WARNING)
        logging.getLogger("weight_averaging").addHandler(self)
        return self

    def __exit__(self, *exception: object) -> None:
        logging.getLogger("weight_averaging").removeHandler(self)

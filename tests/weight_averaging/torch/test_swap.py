"""What others do while the average is in the model, between two blocks of a snapshot, or from another thread."""

import copy
import logging
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.support.merging import MergingLayer, SwappingSGD
from tests.support.small_models import scalar_model
from weight_averaging import EMA, LAWA, Averages, averages
from weight_averaging.torch.model import blocks

MAKERS = {
    "lawa": lambda model: LAWA(model, interval=1, window=2),
    "ema": lambda model: EMA(model, decay=0.5),
    "grid": lambda model: Averages(model, [averages.Weighted(weights=(0.5, 0.5), interval=1)]),
}
KINDS = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)  # each is the mean of 1 and 2


def filled(model: nn.Module, value: float) -> None:
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)


def trained(make, model=None):
    model = model or scalar_model()
    averager = make(model)
    for step in (1, 2):
        filled(model, float(step))
        averager.update(step)
    return model, averager


@KINDS
def test_of_blocks_that_overlap_the_last_takes_the_average_out(make):
    model, averager = trained(make)

    def evaluation(batches):
        with averager.averaged():
            for _ in range(batches):
                yield model.weight.item()

    short, long = evaluation(1), evaluation(3)
    assert (next(short), next(long)) == (1.5, 1.5)
    assert next(short, None) is None
    assert next(long) == 1.5
    assert averager.swapped
    assert list(long) == [1.5]
    assert not averager.swapped
    assert model.weight.item() == 2.0


@given(st.lists(st.sampled_from(["open", "close first", "close last", "in", "out"]), max_size=12))
@settings(deadline=None, max_examples=60)
def test_blocks_and_swaps_in_any_order(actions):
    """The model holds the average while a block is open, or after swap_in; swap_out ends both."""
    model, averager = trained(MAKERS["lawa"])
    open_blocks: list = []
    holds = by_hand = False
    for action in actions:
        if action == "open":
            block = averager.averaged()
            block.__enter__()
            by_hand, holds = by_hand or (holds and not open_blocks), True
            open_blocks.append(block)
        elif action.startswith("close") and open_blocks:
            open_blocks.pop(0 if action == "close first" else -1).__exit__(None, None, None)
            holds = holds and (bool(open_blocks) or by_hand)
        elif action == "in":
            by_hand, holds = by_hand or not holds, True
            averager.swap_in()
        elif action == "out":
            averager.swap_out()
            holds = by_hand = False
        assert averager.swapped == holds
        assert model.weight.item() == (1.5 if holds else 2.0)


@KINDS
def test_a_copy_made_in_a_block_keeps_the_average_until_its_own_swap_out(make):
    model, averager = trained(make)
    with averager.averaged():
        other_model, other = copy.deepcopy((model, averager))
    with other.averaged():
        assert other_model.weight.item() == 1.5
    assert other.swapped
    assert other_model.weight.item() == 1.5
    other.swap_out()
    assert other_model.weight.item() == 2.0


def failing_evaluation(averager, write):
    with averager.averaged():
        write()
        raise ZeroDivisionError


@KINDS
@pytest.mark.parametrize("write", [
    lambda p: p.data.add_(0.25),
    lambda p: p.detach().mul_(2),
    lambda p: p.data.fill_(float("nan")),
], ids=["data", "version", "nan"])  # fmt: skip
def test_a_write_while_swapped_is_told_and_the_raw_weights_are_back(make, write):
    model, averager = trained(make)
    averager.swap_in()
    write(model.weight)
    with pytest.raises(RuntimeError, match="weight was changed while the average was in the model"):
        averager.swap_out()
    assert not averager.swapped
    assert model.weight.item() == 2.0
    averager.update(3)  # training goes on
    with pytest.raises(RuntimeError, match="weight was changed"), averager.averaged():
        write(model.weight)
    assert model.weight.item() == 2.0
    with pytest.raises(ZeroDivisionError):  # an error of the evaluation's own is not hidden
        failing_evaluation(averager, lambda: write(model.weight))
    assert model.weight.item() == 2.0


@KINDS
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_an_embedding_with_a_largest_norm_may_shorten_the_average(make, kind, tied):
    """It writes into its weights in every pass, which is nobody's mistake."""
    model = nn.ModuleList([nn.Linear(1, 1, bias=False), kind(1, 1, max_norm=1.0)])
    if tied:
        model[0].weight = model[1].weight
    model, averager = trained(make, model)  # to 2, the average is 1.5
    with averager.averaged():
        assert model[1](torch.zeros(1, 1, dtype=torch.long)).item() == pytest.approx(1.0)
    assert [parameter.item() for parameter in model.parameters()] == [2.0] * (2 - tied)
    if not tied:  # others are still watched
        with pytest.raises(RuntimeError, match=r"0.weight was changed"), averager.averaged():
            model[0].weight.data += 1


@KINDS
def test_a_layer_replaced_while_swapped_is_told(make):
    """What was made from the averaged layer would be trained on in the place of the raw one."""
    model, averager = trained(make, nn.Sequential(nn.Linear(1, 1, bias=False)))
    old = model[0]
    with pytest.raises(RuntimeError, match=r"the layer of 0.weight was replaced or removed while"), averager.averaged():
        model[0] = copy.deepcopy(old)
    assert not averager.swapped
    assert old.weight.item() == 2.0
    model[0] = old
    with averager.averaged():  # one that only gets a shell, or comes back, is the same
        model[0] = nn.Sequential(old)
    assert model[0][0].weight.item() == 2.0
    with averager.averaged():
        model[0] = nn.Identity()
        model[0] = old
    assert model[0].weight.item() == 2.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_layer_that_merges_and_unmerges_within_the_swap_is_fine(dtype):
    model = MergingLayer().to(dtype)
    averager = LAWA(model, interval=1, window=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.1)
    averager.update(1)
    raw = copy.deepcopy(model.state_dict())
    with averager.averaged():
        model.eval()
        assert model(torch.ones(1, 1, dtype=dtype)).item() == pytest.approx(1.1 + 1.21, rel=0.02)
        model.train()
    assert all(torch.equal(tensor, raw[name]) for name, tensor in model.state_dict().items())


def test_a_merged_model_is_not_swapped():
    model = nn.Sequential(MergingLayer())
    averager = LAWA(model, interval=1, window=1)
    averager.update(1)
    model.eval()
    with pytest.raises(RuntimeError, match="MergingLayer has merged its low-rank weights"):
        averager.swap_in()
    model.train()
    assert averager.swap_in()


def test_an_optimizer_that_swaps_in_eval_within_the_swap_is_told():
    model, averager = trained(MAKERS["ema"])
    optimizer = SwappingSGD(model.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match="an optimizer that swaps them there"), averager.averaged():
        optimizer.eval()
    assert model.weight.item() == 2.0


# Between any two operations on blocks.
OPERATIONS = ("_foreach_copy_", "_foreach_lerp_")


def interrupted(real, counter, at, after):
    """An operation that raises before or after its work, if it is number `at` of the counter."""

    def run(*args, **kwargs):
        number = next(counter)
        if number == at and not after:
            raise KeyboardInterrupt
        result = real(*args, **kwargs)
        if number == at:
            raise KeyboardInterrupt
        return result

    return run


def several(model):
    """An EMA that is begun after a window has taken the block."""
    grid = Averages(model, [averages.LAWA(window=2, interval=1), averages.EMA(decay=0.5, interval=1)])
    grid.select(grid.averages[1])
    return grid


@pytest.mark.parametrize("make", [*MAKERS.values(), several], ids=[*MAKERS, "several"])
@pytest.mark.parametrize("after", [False, True], ids=["before the operation", "after it"])
def test_an_update_is_whole_or_not_at_all(make, after, monkeypatch):
    """Ctrl-C at each operation in turn: the average is that of before the snapshot, or that of after it."""
    monkeypatch.setattr(blocks, "CPU_BLOCK", 4)
    for at in range(1, 40):
        model = nn.Sequential(*(nn.Linear(3, 3, bias=False) for _ in range(3)))
        model, averager = trained(make, model)
        filled(model, 4.0)
        counter = iter(range(1, 100))
        with monkeypatch.context() as patch:
            for name in OPERATIONS:
                patch.setattr(torch, name, interrupted(getattr(torch, name), counter, at, after))
            try:
                averager.update(3)
            except KeyboardInterrupt:
                pass
            else:
                assert at > 3, "some operation was interrupted"
                return
        assert averager.ready
        with averager.averaged():
            values = {value for parameter in model.parameters() for value in parameter.flatten().tolist()}
        assert values in ({1.5}, {2.75} if make in (MAKERS["ema"], several) else {3.0}), at
    raise AssertionError("it never came to an end")


@KINDS
def test_a_copy_from_a_thread_is_of_one_update(make):
    model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(8)))
    averager = make(model)
    other, seen, done = copy.deepcopy(model), [], threading.Event()

    def evaluate():
        while not done.is_set():
            averager.copy_to(other)
            seen.append({parameter[0, 0].item() for parameter in other.parameters()})

    for step in (1, 2):
        filled(model, float(step))
        averager.update(step)
    thread = threading.Thread(target=evaluate)
    thread.start()
    for step in range(3, 300):
        filled(model, float(step))
        averager.update(step)
    done.set()
    thread.join()
    assert len(seen) > 3
    assert all(len(values) == 1 for values in seen), [values for values in seen if len(values) > 1][:3]


TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@given(before=st.sampled_from(TYPES), during=st.sampled_from(TYPES), value=st.floats(-9, 9))
def test_raw_weights_that_come_back_rounded_are_told(before, during, value):
    """The model is cast to evaluate it in fewer bits, and training would go on from rounded weights in silence."""
    model, averager = trained(MAKERS["ema"], scalar_model().to(before))
    filled(model, value)
    raw = model.weight.detach().clone()
    said: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = said.append
    logging.getLogger("weight_averaging").addHandler(handler)
    try:
        with averager.averaged():
            model.to(during)
    finally:
        logging.getLogger("weight_averaging").removeHandler(handler)
    exact = torch.promote_types(before, during) == during
    assert exact == (not said)
    if said:
        assert f"weight was made {during} of {before}: the raw weights are back, rounded" in said[0].getMessage()
    assert torch.equal(model.weight.detach(), raw.to(during))

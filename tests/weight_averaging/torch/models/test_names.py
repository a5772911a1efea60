"""Names without what wrappers add, and models that cannot be averaged."""

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from tests.support.small_models import saved, scalar_model
from weight_averaging import averages
from weight_averaging.torch import EMA, LAWA, Averages


class Unusual(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module
        self.head = nn.Linear(1, 1, bias=False)


WRAPPINGS = {
    "plain": lambda model: model,
    "parallel": nn.DataParallel,
    "compiled": torch.compile,
    "compiled, parallel": lambda model: nn.DataParallel(torch.compile(model)),
    "parallel, compiled": lambda model: torch.compile(nn.DataParallel(model)),
    "checkpointed": checkpoint_wrapper,
    "all": lambda model: torch.compile(nn.DataParallel(checkpoint_wrapper(torch.compile(model)))),
}


@pytest.mark.parametrize("outside", WRAPPINGS.values(), ids=WRAPPINGS)
@pytest.mark.parametrize("inside", WRAPPINGS.values(), ids=WRAPPINGS)
def test_names_are_those_of_the_plain_model_at_save_and_at_load(outside, inside):
    """Also where a submodule is really called `module`."""
    model = Unusual(nn.Linear(1, 1, bias=False))
    model.module = inside(model.module)
    wrapped = outside(model)
    ema = EMA(wrapped, decay=0.5)
    for parameter in wrapped.parameters():
        nn.init.constant_(parameter, 3.0)
    ema.update(1)
    if not isinstance(model.module, nn.DataParallel | torch._dynamo.OptimizedModule):
        assert list(ema.average_state_dict()) == ["module.weight", "head.weight"]
    state = saved(ema)
    assert state["names"] == ["module.weight", "head.weight"]
    plain = Unusual(nn.Linear(1, 1, bias=False))
    other = EMA(plain, decay=0.5)
    other.load_state_dict(state)
    with other.averaged():
        assert plain.module.weight.item() == plain.head.weight.item() == 3.0
    back = EMA(outside(Unusual(inside(nn.Linear(1, 1, bias=False)))), decay=0.5)
    back.load_state_dict(saved(other))
    assert back.ready


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.LazyLinear(2)


MAKERS = [
    lambda model: LAWA(model, interval=1, window=2),
    lambda model: EMA(model, decay=0.5),
    lambda model: Averages(model, [averages.LAWA(window=2, interval=1)]),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", MAKERS, ids=["lawa", "ema", "grid"])
def test_models_that_cannot_be_averaged_yet_are_told_in_one_line(make):
    cases = [
        (scalar_model().parameters(), TypeError, "the torch.nn.Module itself, not its parameters: got generator"),
        (list(scalar_model().parameters()), TypeError, "not its parameters: got list"),
        (torch.ones(2), TypeError, "got Tensor"),
        (lambda x: x, TypeError, "takes a torch.nn.Module: got function"),
        (nn.Linear(2, 2, device="meta"), ValueError, "weight is on the meta device: give the model memory"),
        (Lazy(), ValueError, "layer.weight is not initialised yet: run the model once"),
    ]
    for model, error, message in cases:
        with pytest.raises(error, match=message) as raised:
            make(model)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("count", "said"), [(3, "0.bias, 1.bias, 2.bias)"), (4, "0.bias, 1.bias, 2.bias, ...)")])
def test_of_what_is_left_out_three_are_named(count, said, caplog):
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(count)))
    with caplog.at_level("INFO", "weight_averaging"):
        EMA(model, decay=0.5, exclude=["*.bias"])
    assert f"; {count} left as training has them: " in caplog.text
    assert f"({said}" in caplog.text


class Stage(nn.Module):
    def __init__(self, number, value, dtype=torch.float32):
        super().__init__()
        self.layers = nn.ModuleDict({str(number): nn.Linear(1, 1)})
        self.register_buffer("angles", torch.full((2,), value, dtype=dtype))


@pytest.mark.parametrize("other", [Stage(1, 2.0), Stage(1, 1.0, torch.float64)])
def test_stages_with_different_tensors_of_one_name_have_no_state_dict(other):
    """Of the tensors that are not averaged; one of them would be lost in silence."""
    assert set(average_of(Stage(0, 1.0), Stage(1, 1.0))) > {"angles", "layers.0.weight", "layers.1.bias"}
    with pytest.raises(ValueError, match="two stages have different tensors called angles"):
        average_of(Stage(0, 1.0), other)


def average_of(*stages):
    averager = EMA(list(stages), decay=0.5)
    averager.update(1)
    whole = averager.average_state_dict(full=True)
    assert averager.average_state_dict().keys() == whole.keys()
    return whole

"""What layers, torch and bitsandbytes make of weights and keep: an evaluation never sees that of other weights."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from tests.support.small_models import scalar_model
from tests.weight_averaging.torch.test_swap import KINDS, MAKERS, trained
from weight_averaging import LAWA
from weight_averaging.torch.model import modes


@KINDS
def test_casts_of_an_open_autocast_region_are_forgotten(make):
    model, averager = trained(make)
    other = copy.deepcopy(model)
    x = torch.ones(1, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x).item() == 2.0
        other(x)
        with averager.averaged():
            assert model(x).item() == 1.5
        assert model(x).item() == 2.0
        averager.copy_to(other)
        assert other(x).item() == 1.5


def test_batch_norm_is_recomputed_with_the_average_in_an_open_autocast_region():
    model, averager = trained(lambda model: LAWA(model, interval=1, window=2, buffers="recompute"))
    x, seen = torch.ones(1, 1), []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(x)
        with averager.averaged(recompute=lambda: seen.append(model(x).item())):
            pass
    assert seen == [1.5]


class Quantising(nn.Linear):
    """Evaluates what a training pass has kept of the weights, as bitsandbytes' Linear8bitLt(has_fp16_weights=True)."""

    def __init__(self) -> None:
        super().__init__(1, 1, bias=False)
        self.state = SimpleNamespace(has_fp16_weights=True, CB=None)
        self.state.reset_grads = lambda: setattr(self.state, "CB", None)

    def forward(self, x):
        if self.training or self.state.CB is None:
            self.state.CB = self.weight.detach().clone()
        return x @ self.state.CB.T


@KINDS
def test_copies_of_a_quantising_layer_are_forgotten(make):
    model, averager = trained(make, nn.Sequential(Quantising()))
    other, x = nn.Sequential(Quantising()), torch.ones(1, 1)
    for each in (model, other):
        each(x)
        each.eval()
    assert model(x).item() == 2.0
    with averager.averaged():
        assert model(x).item() == 1.5
    assert model(x).item() == 2.0
    averager.copy_to(other)
    assert other(x).item() == 1.5


class KeepingBiases(nn.Linear):
    """Keeps in evaluation mode what it makes of its weights: when used, as timm's LeViT, or in eval(), as the first."""

    def __init__(self, in_eval: bool) -> None:
        super().__init__(1, 1, bias=False)
        self.in_eval, self.kept = in_eval, None

    def train(self, mode=True):
        super().train(mode)
        self.kept = 2 * self.weight.detach() if self.in_eval and not mode else None
        return self

    def forward(self, x):
        if not self.training and self.kept is None:
            self.kept = 2 * self.weight.detach()
        return x @ (2 * self.weight if self.training else self.kept).T


@KINDS
@pytest.mark.parametrize("in_eval", [False, True])
@pytest.mark.parametrize("whole", [False, True], ids=["in a model that is trained", "model in evaluation mode"])
def test_what_a_layer_keeps_in_evaluation_mode_is_made_anew(make, in_eval, whole):
    model, averager = trained(make, nn.Sequential(KeepingBiases(in_eval), nn.Dropout()))
    other, x = copy.deepcopy(model), torch.ones(1, 1)
    for each in (model, other):
        (each if whole else each[0]).eval()
    assert model[0](x).item() == other[0](x).item() == 4.0
    modes = [module.training for module in model.modules()]
    with averager.averaged():
        assert model[0](x).item() == 3.0
        saved = copy.deepcopy(averager.state_dict())
        assert [module.training for module in model.modules()] == modes
    assert model[0](x).item() == 4.0
    averager.copy_to(other)
    assert other[0](x).item() == 3.0
    assert [module.training for module in other.modules()] == modes
    again = make(other)
    again.load_state_dict(saved)  # made while the average was in the model: the raw weights come back
    assert other[0](x).item() == 4.0


class Starting(nn.Linear):
    """Its `train` is no switch of the mode, as in ultralytics' YOLO."""

    def train(self, trainer=None):
        raise AssertionError("a swap has begun a training")


class Flagged(nn.Linear):
    train = True


@pytest.mark.parametrize("kind", [Starting, Flagged])
def test_a_train_that_is_no_switch_of_the_mode_is_not_called(kind):
    model = kind(1, 1, bias=False)
    model.training = False
    model, averager = trained(MAKERS["lawa"], model)
    with averager.averaged():
        assert model.weight.item() == 1.5
    assert model.weight.item() == 2.0


class Folding(nn.Module):
    """Adds one weight to another in eval(), and nothing tells from outside that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.other = (nn.Parameter(torch.ones(1, 1)) for _ in range(2))
        self.folded = False

    def train(self, mode=True):
        super().train(mode)
        if mode == self.folded:
            self.weight.data += (-1 if mode else 1) * self.other
            self.folded = not mode
        return self

    def forward(self, x):
        return x @ (self.weight if self.folded else self.weight + self.other)


@KINDS
def test_a_layer_that_folds_weights_in_secret_is_averaged_unfolded(make):
    model, averager = trained(make, Folding())  # both weights are 2, and 1.5 on average
    model.eval()
    x = torch.ones(1, 1)
    assert model(x).item() == 4.0
    with averager.averaged():
        assert model(x).item() == 3.0
    assert model(x).item() == 4.0
    model.train()
    assert [parameter.item() for parameter in model.parameters()] == [2.0, 2.0]


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


@KINDS
def test_cached_parametrisations_are_forgotten(make):
    model = scalar_model()
    parametrize.register_parametrization(model, "weight", Doubled())
    model, averager = trained(make, model)
    with parametrize.cached():
        assert model.weight.item() == 4.0
        with averager.averaged():
            assert model.weight.item() == 3.0
        assert model.weight.item() == 4.0


@pytest.mark.parametrize("how", ["swap", "copy"])
def test_it_says_once_that_frozen_compiled_code_does_not_see_the_average(how, caplog):
    from torch._inductor import config

    model, averager = trained(MAKERS["lawa"])
    other = copy.deepcopy(model)

    def show() -> None:
        if how == "copy":
            averager.copy_to(other)
            return
        with averager.averaged():
            pass

    modes._warn_of_frozen_weights.cache_clear()
    show()
    assert "freezing" not in caplog.text
    with config.patch(freezing=True):
        show()
        show()
    assert caplog.text.count("torch._inductor.config.freezing is on: a compiled model goes on with the weights") == 1

"""Averages of the float32 masters of a bfloat16 model."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.support import reference
from tests.support.small_models import saved
from weight_averaging import averages
from weight_averaging.torch import EMA, LAWA, Averages

HALF = (torch.bfloat16, torch.float16)


def model_of(dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> nn.Module:
    """Two layers of the type, and a norm in float32, which is its own master."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 2, bias=False)).to(dtype)
    model[1].float()
    return model


def masters_of(model: nn.Module) -> dict[nn.Parameter, torch.Tensor]:
    return {p: p.detach().clone().float() for p in model.parameters() if p.dtype != torch.float32}


def train(model: nn.Module, masters: dict, step: int) -> np.ndarray:
    """An update of the masters, which are then rounded into the model; the values that are averaged, as float64."""
    generator = torch.Generator().manual_seed(step)
    seen = []
    with torch.no_grad():
        for parameter in model.parameters():
            master = masters.get(parameter, parameter)
            master.add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)
            if master is not parameter:
                parameter.copy_(master)
            seen.append(master.detach().double().reshape(-1).clone())
    return torch.cat(seen).numpy()


def rounded(value: np.ndarray, model: nn.Module) -> list[torch.Tensor]:
    """Cut into tensors of the model's shapes and types."""
    pieces = torch.from_numpy(value).split([p.numel() for p in model.parameters()])
    return [piece.view(p.shape).float().to(p.dtype) for piece, p in zip(pieces, model.parameters(), strict=True)]


def weights_of(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


EVERY = {
    "lawa": lambda model, **options: LAWA(model, interval=1, window=3, allow_partial=True, **options),
    "ema": lambda model, **options: EMA(model, decay=0.9, **options),
    "growing": lambda model, **options: EMA.growing(model, share=0.5, **options),
    "weights": lambda model, **options: Averages(
        model, [averages.Weighted(weights=(0.25, 0.25, 0.5), interval=1)], **options
    ),
}
every = pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)


@every
@pytest.mark.parametrize("placement", ["auto", "host"])
def test_averages_are_those_of_the_masters_as_if_they_were_the_model(make, placement):
    """Bit for bit those of a float32 model with the same weights; rounded once, into the model."""
    model, twin = model_of(), model_of().float()
    masters = masters_of(model)
    averager, other = make(model, masters=masters, placement=placement), make(twin)
    for step in range(1, 8):
        train(model, masters, step)
        with torch.no_grad():
            for parameter, exact in zip(model.parameters(), twin.parameters(), strict=True):
                exact.copy_(masters.get(parameter, parameter))
        assert averager.update(step)
        assert other.update(step)
    for mine, theirs in zip(averager._tracks[0].vectors(), other._tracks[0].vectors(), strict=True):
        assert torch.equal(mine, theirs)
    raw, kept = weights_of(model), {id(p): m.clone() for p, m in masters.items()}
    with averager.averaged() as ready, other.averaged():
        assert ready
        assert same(weights_of(model), [t.to(p.dtype) for t, p in zip(weights_of(twin), raw, strict=True)])
    assert same(weights_of(model), raw)
    assert all(torch.equal(master, kept[id(p)]) for p, master in masters.items())
    for name, value in averager.average_state_dict().items():
        assert torch.equal(value, other.average_state_dict()[name].to(value.dtype))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(HALF),
    st.integers(1, 5),
    st.integers(1, 3),
    st.lists(st.sampled_from(["update", "evaluate", "reload"]), min_size=1, max_size=25),
)
def test_they_agree_with_float64_whatever_happens_in_between(dtype, window, interval, actions):
    model = model_of(dtype)
    masters = masters_of(model)

    def make() -> list:
        return [
            LAWA(model, interval=interval, window=window, masters=masters),
            EMA(model, decay=0.7, interval=interval, masters=masters.get),
            EMA.growing(model, share=0.5, interval=interval, masters=masters),
        ]

    averagers, step, seen = make(), 0, []
    for action in actions:
        if action == "update":
            step += 1
            value = train(model, masters, step)
            seen += [value] if step % interval == 0 else []
            for averager in averagers:
                averager.update(step)
        elif action == "reload":
            states = [saved(averager) for averager in averagers]
            averagers = make()
            for averager, state in zip(averagers, states, strict=True):
                averager.load_state_dict(state)
        else:
            raw = weights_of(model)
            expected = [reference.lawa(seen, window), reference.ema(seen, 0.7)]
            for averager, value in zip(averagers, expected):
                with averager.averaged() as ready:
                    assert ready == (value is not None)
                    for mine, exact in zip(weights_of(model), rounded(value, model) if ready else raw, strict=True):
                        torch.testing.assert_close(mine, exact, rtol=torch.finfo(mine.dtype).eps, atol=1e-6)
                assert same(weights_of(model), raw)


def test_what_averages_of_roundings_are_off_by():
    """The masters' average is that of float64, rounded; the roundings' is not, in many weights."""
    torch.manual_seed(0)
    model = nn.Linear(100, 100, bias=False).bfloat16()
    masters = masters_of(model)
    exact, plain = LAWA(model, interval=1, window=8, masters=masters), LAWA(model, interval=1, window=8)
    seen = []
    for step in range(1, 9):
        seen.append(train(model, masters, step))
        exact.update(step)
        plain.update(step)
    value = reference.lawa(seen, 8)
    for averager, least, most in ((exact, 0.0, 1e-7), (plain, 1e-4, 1e-2)):
        vectors = [vector.double().numpy() for vector in averager._tracks[0].vectors()]
        assert least <= abs(np.mean(vectors, axis=0) - value).max() <= most
    with exact.averaged():
        wrong = (weights_of(model)[0] != rounded(value, model)[0]).float().mean()
    assert wrong < 1e-3  # ties, and nearly so


@every
def test_adopted_the_masters_are_the_average_too(make):
    model = model_of()
    masters = masters_of(model)
    averager = make(model, masters=masters)
    for step in range(1, 5):
        train(model, masters, step)
        averager.update(step)
    expected = averager.average_state_dict()
    averager.adopt()
    for parameter, value in zip(model.parameters(), expected.values(), strict=True):
        assert torch.equal(parameter, value)
        assert torch.equal(masters.get(parameter, parameter).to(value.dtype), value)
    assert any(not torch.equal(master, master.bfloat16().float()) for master in masters.values())  # not rounded
    train(model, masters, 5)
    assert averager.update(5)

    computed = make(model, masters=lambda p: masters[p] * 1 if p in masters else None)
    for step in range(6, 10):
        train(model, masters, step)
        computed.update(step)
    raw, kept = weights_of(model), [m.clone() for m in masters.values()]
    with pytest.raises(RuntimeError, match=r"adopt\(\): the master of 0\.weight is computed at each call"):
        computed.adopt()
    assert not computed.swapped
    assert same(weights_of(model), raw)
    assert same(list(masters.values()), kept)


def test_a_copy_of_model_masters_and_averager_goes_on_by_itself():
    model = model_of()
    masters = masters_of(model)
    lawa = LAWA(model, interval=1, window=2, masters=masters)
    train(model, masters, 1)
    lawa.update(1)
    other, others, copied = copy.deepcopy((model, masters, lawa))
    for step in (2, 3):
        train(other, others, step)
        copied.update(step)
    before = [vector.clone() for vector in lawa._tracks[0].vectors()]
    train(model, masters, 2)
    lawa.update(2)
    assert torch.equal(lawa._tracks[0].vectors()[0], before[0])
    assert torch.equal(lawa._tracks[0].vectors()[1], copied._tracks[0].vectors()[0])


def wrapped(optimizer: object) -> SimpleNamespace:
    """As accelerate and Lightning wrap optimizers."""
    return SimpleNamespace(optimizer=optimizer, param_groups=[])


def kept_by(kind: str, model: nn.Module, masters: dict) -> object:
    """Something with the attributes that the optimizers of these libraries have by their sources."""
    low, high = list(masters), list(masters.values())
    if kind == "apex FP16_Optimizer":
        return SimpleNamespace(
            param_groups=[], fp16_groups=[low[:1], low[1:]], fp32_from_fp16_groups=[high[:1], high[1:]]
        )
    if kind == "megatron-core":
        return wrapped(SimpleNamespace(param_groups=[], float16_groups=[low], fp32_from_float16_groups=[high]))
    if kind == "apex FusedAdam":
        groups = [{"params": low[:2]}, {"params": low[2:]}]
        return SimpleNamespace(param_groups=groups, param_groups_master=[{"params": high[:2]}, {"params": high[2:]}])
    if kind == "apex amp":
        stash = SimpleNamespace(all_fp16_params=low, all_fp32_from_fp16_params=high)
        return wrapped(SimpleNamespace(param_groups=[{"params": high}], _amp_stash=stash))
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter, master in masters.items():
        optimizer.state[parameter]["master_param"] = master
    return optimizer


@pytest.mark.parametrize(
    "kind", ["apex FP16_Optimizer", "megatron-core", "apex FusedAdam", "apex amp", "transformer_engine"]
)
def test_optimizers_that_keep_masters(kind):
    model = model_of()
    masters = masters_of(model)
    by_optimizer = LAWA(model, interval=1, window=2, masters=kept_by(kind, model, masters))
    by_mapping = LAWA(model, interval=1, window=2, masters=masters)
    for step in (1, 2):
        train(model, masters, step)
        by_optimizer.update(step)
        by_mapping.update(step)
    for mine, theirs in zip(by_optimizer._tracks[0].vectors(), by_mapping._tracks[0].vectors(), strict=True):
        assert torch.equal(mine, theirs)


class TestOneLine:
    """What is wrong with the masters is said at the first update, or when they go wrong."""

    def test_of_another_kind(self):
        with pytest.raises(TypeError, match=r"masters takes an optimizer, a mapping .* not list"):
            LAWA(model_of(), interval=1, window=2, masters=[1])

    @pytest.mark.parametrize("what", ["optimizer", "mapping", "function"])
    def test_missing(self, what):
        model = model_of()
        masters = masters_of(model)
        del masters[model[2].weight]
        source = {"optimizer": torch.optim.AdamW(model.parameters()), "mapping": masters, "function": masters.get}[what]
        says = {
            "optimizer": r"0\.weight in AdamW: it keeps none",
            "mapping": r"2\.weight in the mapping",
            "function": r"2\.weight \(the",
        }
        with pytest.raises(ValueError, match=f"there is no float32 master of {says[what]}"):
            LAWA(model, interval=4, window=2, masters=source).update(1)

    def test_none_at_all(self):
        with pytest.raises(ValueError, match=r"there is no float32 master of 0\.weight in the mapping"):
            LAWA(model_of(torch.float32), interval=4, window=2, masters={}).update(1)

    def test_of_another_parameter(self):
        model = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False), "b": nn.Linear(4, 4, bias=False)}).bfloat16()
        masters = masters_of(model)
        a, b = masters
        with pytest.raises(ValueError, match=r"a\.weight is .* where its master is .* does not round to it"):
            LAWA(model, interval=1, window=2, masters={a: masters[b], b: masters[a]}).update(1)

    def test_left_behind(self):
        """Somebody loads weights into the model without the optimizer: told before the average is used."""
        model = model_of()
        masters = masters_of(model)
        lawa = LAWA(model, interval=1, window=1, masters=masters)
        train(model, masters, 1)
        lawa.update(1)
        model.load_state_dict(model_of(seed=3).state_dict())
        with pytest.raises(ValueError, match="or the model was changed without it"), lawa.averaged():
            pass

    def test_of_another_size_or_type(self):
        model = nn.Linear(4, 4, bias=False).bfloat16()
        for master, says in ((torch.ones(3), "3 elements, the parameter 16"), (model.weight, "is torch.bfloat16, not")):
            with pytest.raises(ValueError, match=says):
                LAWA(model, interval=1, window=2, masters={model.weight: master}).update(1)

    def test_before_the_first_step(self):
        model = model_of()
        lawa = LAWA(model, interval=1, window=1, start=0, masters=torch.optim.AdamW(model.parameters()))
        with pytest.raises(ValueError, match="or makes them at its first step"):
            lawa.update(0)


def test_a_nan_in_a_master_is_refused_and_named(caplog):
    model = model_of()
    masters = masters_of(model)
    lawa = LAWA(model, interval=1, window=2, masters=masters)
    train(model, masters, 1)
    assert lawa.update(1)
    masters[model[2].weight].view(-1)[0] = float("nan")
    assert not lawa.update(2)
    assert "2.weight" in caplog.text


def test_layers_unfrozen_later_count_with_their_masters():
    model = model_of()
    model[2].weight.requires_grad_(False)
    masters = masters_of(model)
    lawa = LAWA(model, interval=1, window=2, masters=masters)
    train(model, {p: m for p, m in masters.items() if p.requires_grad}, 1)
    with torch.no_grad():
        masters[model[2].weight].copy_(model[2].weight).add_(1e-5)
    lawa.update(1)
    model[2].weight.requires_grad_(True)
    first = masters[model[2].weight].clone()
    lawa.update(2)
    numel = first.numel()
    for vector in lawa._tracks[0].vectors():
        assert torch.equal(vector[-numel:], first.reshape(-1))


def test_a_state_of_masters_loads_where_there_are_none():
    """To evaluate what was trained elsewhere there is no optimizer."""
    model = model_of()
    masters = masters_of(model)
    lawa = LAWA(model, interval=1, window=2, masters=masters)
    for step in (1, 2):
        train(model, masters, step)
        lawa.update(step)
    other = LAWA(model_of(seed=7), interval=1, window=2)
    other.load_state_dict(saved(lawa))
    assert all(
        torch.equal(a, b) for a, b in zip(lawa.average_state_dict().values(), other.average_state_dict().values())
    )


def test_a_weight_that_overflows_in_fewer_bits_has_its_own_master_still():
    model, master = torch.nn.Linear(1, 1, bias=False).half(), torch.tensor([[70_000.0]])
    model.weight.data.copy_(master)
    assert LAWA(model, interval=1, window=1, masters={model.weight: master}).update(1)

"""States through Orbax and flax checkpoints, and to PyTorch's averagers and back, bit for bit."""

import pickle
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
from flax.training import checkpoints

from tests.support.small_models import flat, model_of, randomise, saved, value_of
from tests.weight_averaging.jax.test_jax_averagers import assert_same
from weight_averaging import convert
from weight_averaging.averages import EMA as EMADescription
from weight_averaging.averages import Merge, Power
from weight_averaging.jax import averaging, ema, host_lawa, lawa
from weight_averaging.torch import EMA, LAWA, Averages

AVERAGERS = {
    "lawa": lawa(1, 3),
    "partial": lawa(2, 2, allow_partial=True),
    "host": host_lawa(1, 2),
    "ema": ema(0.9, warmup=True),
    "compensated": ema(0.9, compensated=True),
}


class Net(nn.Module):
    @nn.compact
    def __call__(self, inputs, train: bool = True):
        hidden = nn.BatchNorm(use_running_average=not train, param_dtype=jnp.bfloat16)(nn.Dense(5)(inputs))
        return nn.Dense(2, param_dtype=jnp.float16)(hidden)


def variables_of(seed: int):
    variables = Net().init(jax.random.key(0), jnp.ones((2, 3)))
    rng = np.random.default_rng(seed)
    return {"seen": jnp.int32(seed)} | jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), variables
    )


def with_orbax(tree, like, folder):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "orbax", tree)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "orbax", jax.tree.map(ocp.utils.to_shape_dtype_struct, like))


def with_flax(tree, like, folder):
    checkpoints.save_checkpoint(str(folder / "flax"), tree, 1, overwrite=True)
    return checkpoints.restore_checkpoint(str(folder / "flax"), like)


@pytest.mark.parametrize("through", [with_orbax, with_flax])
@pytest.mark.parametrize("name", AVERAGERS)
@pytest.mark.parametrize(("at", "swapped"), [(0, False), (2, False), (2, True), (7, True)])
def test_a_run_goes_on_from_a_checkpoint_as_if_nothing_had_been(through, name, at, swapped, tmp_path):
    averager = AVERAGERS[name]

    def go_on(state, params, first, last):
        for step in range(first, last):
            drift = variables_of(step)
            params = {**jax.tree.map(lambda a, b: (a + b).astype(a.dtype), params, drift), "seen": drift["seen"]}
            state = averager.update(state, params, step)
        return state, params

    state, params = go_on(averager.init(variables_of(0)), variables_of(0), 1, at + 1)
    # While the average is evaluated, a loop may have it where the weights were, and those beside.
    whole = {"state": state, "params": averager.average(state, params) if swapped else params, "raw": params}
    fresh = {"state": averager.init(params), "params": params, "raw": params}
    restored = through(whole, fresh, tmp_path)
    assert_same(whole, restored)
    assert_same(go_on(restored["state"], restored["raw"], at + 1, at + 6), go_on(state, params, at + 1, at + 6))


PAIRS = {
    "host": (host_lawa(1, 2), lambda model: LAWA(model, interval=1, window=2)),
    "lawa": (lawa(1, 3), lambda model: LAWA(model, interval=1, window=3)),
    "partial": (
        lawa(2, 4, 2, allow_partial=True),
        lambda model: LAWA(model, interval=2, window=4, start=2, allow_partial=True),
    ),
    "ema": (ema(0.9, 2), lambda model: EMA(model, decay=0.9, interval=2)),
    "warmup": (ema(0.99, warmup=True), lambda model: EMA(model, decay=0.99, warmup=True)),
    "horizon": (ema(share=0.3), lambda model: EMA(model, share=0.3)),
    "compensated": (ema(0.9, compensated=True), lambda model: EMA(model, decay=0.9, dtype=torch.float64)),
}


def to_flax(arrays):
    """The weights of `small_models.model_of` as flax has them."""
    return {
        "params": {
            "Dense_0": {"kernel": arrays["0.weight"].T, "bias": arrays["0.bias"]},
            "BatchNorm_0": {"scale": arrays["1.weight"], "bias": arrays["1.bias"]},
            "Dense_1": {"kernel": arrays["2.weight"].T},
        },
        "batch_stats": {"BatchNorm_0": {"mean": arrays["1.running_mean"], "var": arrays["1.running_var"]}},
    }


def from_flax(tree):
    params, statistics = tree["params"], tree["batch_stats"]["BatchNorm_0"]
    return {
        "0.weight": params["Dense_0"]["kernel"].T,
        "0.bias": params["Dense_0"]["bias"],
        "1.weight": params["BatchNorm_0"]["scale"],
        "1.bias": params["BatchNorm_0"]["bias"],
        "1.running_mean": statistics["mean"],
        "1.running_var": statistics["var"],
        "2.weight": params["Dense_1"]["kernel"].T,
    }


def weights(model):
    arrays = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
    return jax.tree.map(jnp.asarray, to_flax(arrays))


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("switch", [1, 2, 9])
def test_a_run_goes_on_in_the_other_framework_and_back(name, switch):
    averager, make = PAIRS[name]
    # The weights of snapshots are float32 in JAX, and of these averages float64 in PyTorch.
    same = partial(np.testing.assert_allclose, rtol=0, atol=2e-7 if name in ("horizon", "compensated") else 0)
    model, alone = model_of(), model_of()
    theirs, reference = make(model), make(alone)

    def train(first, last, *models_and_averagers):
        for step in range(first, last):
            for model, average in models_and_averagers:
                randomise(model, step)
                average.update(step)

    train(1, switch + 1, (model, theirs), (alone, reference))
    held = pickle.loads(pickle.dumps(convert.from_torch(saved(theirs))))
    state = convert.to_jax(held, averager, weights(model), to_flax)
    assert int(state.step) == switch
    for step in range(switch + 1, switch + 6):
        randomise(model, step)
        state = averager.update(state, weights(model), step)
    train(switch + 1, switch + 6, (alone, reference))
    average = averager.average(state, weights(model))
    with reference.averaged():
        jax.tree.map(same, average, weights(alone))

    again = make(model)
    again.load_state_dict(convert.to_torch(convert.from_jax(averager, state, weights(model), from_flax)))
    same(value_of(again, model), value_of(reference, alone))
    assert (again.step, again.snapshot_steps, again._shown.count) == (
        reference.step,
        reference.snapshot_steps,
        reference._shown.count,
    )
    train(switch + 6, switch + 12, (model, again), (alone, reference))
    same(value_of(again, model), value_of(reference, alone))
    same(flat(model), flat(alone))


def test_names_are_paths_where_nothing_is_to_be_turned():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1, dtype=torch.complex64))
    theirs = LAWA(model, interval=1, window=2)
    theirs.update(1)
    theirs.update(2)
    params = {
        number: {name: jnp.asarray(tensor.detach().numpy()) for name, tensor in layer.named_parameters()}
        for number, layer in model.named_children()
    }
    averager = lawa(1, 2)
    state = convert.to_jax(convert.from_torch(saved(theirs)), averager, params)
    assert_same(averager.average(state, params), params)
    again = LAWA(model, interval=1, window=2)
    again.load_state_dict(convert.to_torch(convert.from_jax(averager, state, params)))
    assert again.snapshot_steps == [1, 2]
    for mine, expected in zip(saved(again)["tracks"][0]["vectors"], saved(theirs)["tracks"][0]["vectors"]):
        assert torch.equal(mine, expected)


def test_what_cannot_be_converted_is_told():
    model = model_of()
    theirs = LAWA(model, interval=1, window=1)
    theirs.update(1)
    held = convert.from_torch(saved(theirs))
    with pytest.raises(ValueError, match="the state has window=1, and the averager window=2"):
        convert.to_jax(held, lawa(1, 2), weights(model), to_flax)
    with pytest.raises(ValueError, match=r"params.Dense_0.kernel is \(5, 3\) in the state and \(3, 5\) in the model"):
        convert.to_jax(
            held, lawa(1, 1), weights(model), lambda arrays: to_flax({**arrays, "0.weight": arrays["0.weight"].T})
        )
    with pytest.raises(ValueError, match=r"BatchNorm_0.mean is missing: translate has to give a tree like"):
        convert.to_jax(held, lawa(1, 1), weights(model))
    theirs.swap_in()
    with pytest.raises(ValueError, match=r"swap_out\(\), and save it again"):
        convert.from_torch(saved(theirs))
    theirs.swap_out()
    several = Averages(model, [EMADescription(decay=0.5, interval=1)])
    with pytest.raises(ValueError, match="not that of Averages"):
        convert.from_torch(several.state_dict())
    params = {"w": jnp.zeros(2)}
    for described in (Power(gamma=3.0, interval=1), Merge(shape="linear", window=2, interval=1)):
        other = averaging(described)
        with pytest.raises(ValueError, match=f"not that of {type(described).__name__}"):
            convert.from_jax(other, other.init(params), params)
        with pytest.raises(ValueError, match=f"not that of {type(described).__name__}"):
            convert.to_jax(held, other, params)


@pytest.mark.parametrize(("interval", "start"), [(2, 1), (7, 1), (1, 50), (3, 10)])
def test_an_ema_that_went_on_with_new_settings_is_taken_whatever_its_last_update_was(interval, start):
    """Update 3 is not due in the new settings."""
    model = torch.nn.Linear(1, 1, bias=False)
    old, new = EMA(model, decay=0.5), EMA(model, decay=0.5, interval=interval, start=start)
    for step in (1, 2, 3):
        torch.nn.init.constant_(model.weight, 100.0)
        old.update(step)
    new.load_state_dict(saved(old), settings="new")
    params = {"weight": jnp.full((1, 1), 6.0)}
    average = ema(0.5, interval=interval, start=start)
    state = convert.to_jax(convert.from_torch(new.state_dict()), average, params)
    assert average.average(state, params)["weight"].item() == 100
    count = max(1, round(3 / interval))  # the three updates taken in, in the new interval
    assert (int(state.step), int(state.count), int(state.snapshot_step)) == (3, count, 3)
    for step in range(4, 61):
        torch.nn.init.constant_(model.weight, step)
        new.update(step)
        state = average.update(state, {"weight": jnp.full((1, 1), float(step))}, step)
    assert average.average(state, params)["weight"].item() == pytest.approx(value_of(new, model).item(), rel=1e-6)


@pytest.mark.parametrize("value", [1e36, float("nan")])
@pytest.mark.parametrize("make", [lambda **options: lawa(1, 2, **options), lambda **options: ema(0.5, **options)])
def test_snapshots_that_the_averager_refuses_are_told(value, make):
    model = torch.nn.Linear(400, 1, bias=False)
    window = "window" in dict(make().settings)
    kind = (
        LAWA(model, interval=1, window=2, check_finite=False) if window else EMA(model, decay=0.5, check_finite=False)
    )
    for step in (1, 2):
        torch.nn.init.constant_(model.weight, value)
        kind.update(step)
    held, params = convert.from_torch(kind.state_dict()), {"weight": jnp.full((1, 400), 7.0)}
    with pytest.raises(ValueError, match=r"refuses the snapshot of update [12], .* make it with check_finite=False"):
        convert.to_jax(held, make(), params)
    average = make(check_finite=False)
    shown = average.average(convert.to_jax(held, average, params), params)["weight"]
    np.testing.assert_allclose(np.asarray(shown), value, rtol=1e-6)


@pytest.mark.parametrize("average", [lawa(1, 2), ema(0.5)], ids=["lawa", "ema"])
def test_parameters_may_be_arrays_of_numpy(average):
    params = {"weight": np.ones(2, np.float32)}
    state = average.update(average.init(params), params, 1)
    again = convert.to_jax(convert.from_jax(average, state, params), average, params)
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)

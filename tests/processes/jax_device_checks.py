"""JAX's averagers with parameters on four devices; run by test_jax_devices.py in a process of its own."""

import re
import tempfile
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from weight_averaging.jax import LAWAState, ema, host_lawa, lawa

MESHES = {
    kind: Mesh(np.array(jax.devices()).reshape(2, 2), ("a", "b"), axis_types=(kind,) * 2)
    for kind in (AxisType.Auto, AxisType.Explicit)
}
MESH = MESHES[AxisType.Auto]
SPECS = {"w": P("a", "b"), "v": P("b"), "rows": P(("a", "b")), "replicated": P(), "seen": P()}
SHAPES = {"w": (4, 8), "v": (8,), "rows": (8, 3), "replicated": (5,)}
AVERAGERS = {
    "lawa": lawa(2, 3, allow_partial=True),
    "ema": ema(0.99, warmup=True),
    "compensated": ema(0.99, compensated=True),
}
COMMUNICATION = re.compile(r"= (.+?) (all-\w+|reduce-scatter|collective-\w+)(?:-start)?\(")


def params_of(seed: int, sharded: bool = True, mesh: Mesh = MESH) -> dict:
    rng = np.random.default_rng(seed)
    params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in SHAPES.items()}
    params["v"] = params["v"].astype(jnp.bfloat16)
    params["seen"] = jnp.int32(seed)
    return {n: jax.device_put(leaf, NamedSharding(mesh, SPECS[n])) for n, leaf in params.items()} if sharded else params


def placed(tree, leading: int = 0) -> None:
    """Every leaf is sharded as the parameters are."""
    for name, leaf in tree.items():
        expected = NamedSharding(MESH, P(*[None] * leading, *SPECS[name])) if leaf.ndim else NamedSharding(MESH, P())
        assert leaf.sharding.is_equivalent_to(expected, leaf.ndim), (name, leaf.sharding)


def all_placed(state, leading: int = 0) -> None:
    for part in state:
        if isinstance(part, dict):
            placed(part, leading)


def communication(function, *arguments) -> list[tuple[str, str]]:
    return COMMUNICATION.findall(jax.jit(function, donate_argnums=0).lower(*arguments).compile().as_text())


def same(tree, other) -> None:
    for mine, theirs in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))


def check_sharded(name: str) -> None:
    averager = AVERAGERS[name]
    leading = 1 if dict(averager.settings)["averager"] == "LAWA" else 0
    update = jax.jit(averager.update, donate_argnums=0)
    for init in (averager.init, jax.jit(averager.init)):
        state, alone = init(params_of(0)), averager.init(params_of(0, sharded=False))
        all_placed(state, leading)
        for step in range(1, 9):
            old = state
            state = update(state, params_of(step), jnp.int32(step))
            alone = averager.update(alone, params_of(step, sharded=False), step)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old) if leaf.ndim), "memory was not reused"
        all_placed(state, leading)
        same(state, alone)
        average = jax.jit(averager.average)(state, params_of(8))
        placed(average)
        same(average, averager.average(alone, params_of(8, sharded=False)))
        for bad in range(4):  # whichever device has it, all refuse
            spoilt = params_of(9)
            spoilt["rows"] = spoilt["rows"].at[2 * bad].set(jnp.nan)
            refused = averager.update(state, spoilt, 10)
            assert int(refused.refused) == 1
            same(refused._replace(refused=state.refused, step=state.step), state)


def check_explicit(name: str) -> None:
    """On a mesh whose shardings are part of the types."""
    averager = AVERAGERS[name]
    params = lambda step: params_of(step, mesh=MESHES[AxisType.Explicit])  # noqa: E731
    state, expected = averager.init(params(0)), averager.init(params_of(0))
    for step in (1, 2, 3, 4):
        state = jax.jit(averager.update, donate_argnums=0)(state, params(step), step)
        expected = averager.update(expected, params_of(step), step)
    average = averager.average(state, params(4))
    same(state, expected)
    same(average, averager.average(expected, params_of(4)))
    for name, leaf in average.items():
        assert leaf.sharding.is_equivalent_to(NamedSharding(MESHES[AxisType.Explicit], SPECS[name]), leaf.ndim), name


def check_communication(name: str) -> None:
    """None at all without the look for NaN; with it a number a leaf, and only then."""
    settings = {key: value for key, value in AVERAGERS[name].settings if key != "averager"}
    make = lawa if "window" in settings else ema
    for check_finite in (False, True):
        averager = make(**settings, check_finite=check_finite)
        params = params_of(1)
        state = averager.init(params)
        found = communication(averager.update, state, params, jnp.int32(2))
        assert not communication(lambda state, params, average=averager.average: average(state, params), state, params)
        if not check_finite:
            assert not found, found
        for shape, kind in found:
            assert kind == "all-reduce", kind
            assert set(re.findall(r"\w+\[.*?\]", shape)) == {"f32[]"}, shape
        on_each = jax.device_put(params, NamedSharding(MESH, P()))  # replicated, as under AlgoPerf's harness
        assert not communication(averager.update, averager.init(on_each), on_each, jnp.int32(2))


def check_shard_map(name: str) -> None:
    """A NaN in the shard of one device is refused by all that share the state, and by no other."""
    averager = AVERAGERS[name]
    mesh = Mesh(np.array(jax.devices()), ("x",), axis_types=(AxisType.Auto,))
    leading = (None,) if name == "lawa" else ()
    params = {"w": jax.device_put(jnp.arange(8.0) + 1, NamedSharding(mesh, P("x")))}
    state = averager.init(params)
    trees = {field: {"w": P(*leading, "x")} for field, value in state._asdict().items() if isinstance(value, dict)}
    whole = state._replace(**dict.fromkeys(state._fields, P()))._replace(**trees)
    for check_vma in (True, False):
        update = jax.shard_map(
            averager.update, mesh=mesh, in_specs=(whole, {"w": P("x")}, P()), out_specs=whole, check_vma=check_vma
        )
        found, expected = averager.init(params), averager.init(params)
        for step in range(1, 9):
            weights = {"w": jnp.where((params["w"] == 8) & (step == 4), jnp.nan, params["w"] * step)}
            found = jax.jit(update)(found, weights, jnp.int32(step))
            expected = averager.update(expected, weights, step)
            assert [int(shard.data) for shard in found.count.addressable_shards] == [int(expected.count)] * 4
        same(found, expected)
    # Four runs of their own, a device each.
    four = {"w": jax.device_put(jnp.ones((4, 2)), NamedSharding(mesh, P("x")))}
    states = jax.vmap(averager.init)(four)

    def one(state, params, step):
        state, params = jax.tree.map(lambda leaf: leaf[0], (state, params))
        return jax.tree.map(lambda leaf: leaf[None], averager.update(state, params, step))

    update = jax.shard_map(one, mesh=mesh, in_specs=(P("x"), P("x"), P()), out_specs=P("x"))
    spoilt = {"w": four["w"].at[2].set(jnp.nan)}
    assert jax.jit(update)(states, spoilt, jnp.int32(2)).count.tolist() == [1, 1, 0, 1]


def check_named_axes() -> None:
    """What flax says beside arrays about how they are sharded is moved by the window's axis."""
    initializer = nn.initializers.lecun_normal()
    for window in (4, 3):
        averager = lawa(1, window, allow_partial=True)

        @nnx.jit
        def create(averager=averager):
            layer = nnx.Linear(4, 8, kernel_init=nnx.with_partitioning(initializer, ("a", "b")), rngs=nnx.Rngs(0))
            state = averager.init(nnx.state(layer, nnx.Param))
            return nnx.state(layer, nnx.Param), jax.lax.with_sharding_constraint(state, nnx.get_partition_spec(state))

        net = nn.Dense(8, use_bias=False, kernel_init=nn.with_partitioning(initializer, ("a", "b")))
        boxed = net.init(jax.random.key(0), jnp.ones((2, 4)))
        specs = nn.get_partition_spec(jax.eval_shape(lambda: averager.init(boxed)))  # noqa: B023
        assert specs.snapshots["params"]["kernel"] == P(None, "a", "b")
        with jax.set_mesh(MESH) if hasattr(jax, "set_mesh") else MESH:
            params, state = create()
            assert jax.tree.leaves(state.snapshots["kernel"])[0].sharding.spec == P(None, "a", "b")
            for params_, state_ in ((params, state), (boxed, averager.init(boxed))):
                for update in (averager.update, jax.jit(averager.update)):
                    after = update(state_, params_, 1)
                    assert jax.tree.structure(after) == jax.tree.structure(state_)
                    shown = averager.average(after, params_)
                    assert jax.tree.structure(shown) == jax.tree.structure(params_)
                    same(shown, params_)


def check_orbax(name: str) -> None:
    averager = AVERAGERS[name]
    state = averager.init(params_of(0))
    for step in (1, 2):
        state = averager.update(state, params_of(step), step)
    with tempfile.TemporaryDirectory() as folder, ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path(folder) / "state", state)
        checkpointer.wait_until_finished()
        like = averager.init(params_of(0))
        restored = checkpointer.restore(Path(folder) / "state", jax.tree.map(ocp.utils.to_shape_dtype_struct, like))
    assert isinstance(restored, type(state))
    all_placed(restored, 1 if isinstance(restored, LAWAState) else 0)
    same(restored, state)
    same(averager.update(restored, params_of(4), 4), averager.update(state, params_of(4), 4))


def check_host() -> None:
    """In host memory every device has its shards, and of a replicated leaf there is one copy."""
    averager, plain = host_lawa(1, 3), lawa(1, 3)
    state, expected = averager.init(params_of(0)), plain.init(params_of(0))
    for step in range(1, 6):
        params = params_of(step)
        state, expected = averager.update(state, params, step), plain.update(expected, params, step)
        for name, leaf in state.snapshots[(step - 1) % 3].items():
            if name in ("w", "v", "rows"):
                assert leaf.sharding.spec == SPECS[name]
                assert [s.data.shape for s in leaf.addressable_shards] == [
                    s.data.shape for s in params[name].addressable_shards
                ]
        assert len(state.snapshots[(step - 1) % 3]["replicated"].sharding.device_set) == 1
        average = averager.average(state, params)
        placed(average)
        same(average, plain.average(expected, params))
    for slot, tree in enumerate(state.snapshots):
        same({n: leaf for n, leaf in tree.items() if n != "seen"}, {n: expected.snapshots[n][slot] for n in SHAPES})


if __name__ == "__main__":
    assert len(jax.devices()) == 4
    for given in AVERAGERS:
        check_sharded(given)
        check_explicit(given)
        check_communication(given)
        check_shard_map(given)
        check_orbax(given)
    check_named_axes()
    check_host()
    print("ok")

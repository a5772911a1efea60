"""Checkpoints of Orbax, averaged and restored by Orbax, which is among what all tests need."""

import pytest

ocp = pytest.importorskip("orbax.checkpoint")
jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from tests.support.forms import command  # noqa: E402
from weight_averaging.offline.forms import orbax  # noqa: E402


def trees(steps=(1, 2, 3)):
    """As a TrainState: a list, bfloat16, an integer, and Adam's moments."""
    made = {}
    for step in steps:
        keys = jax.random.split(jax.random.key(step), 3)
        params = {"dense": {"kernel": jax.random.normal(keys[0], (2, 3)), "bias": jax.random.normal(keys[1], (3,))},
                  "blocks": [jax.random.normal(keys[2], (2,), jnp.bfloat16), jnp.full((1,), float(step))]}  # fmt: skip
        made[step] = {"params": params, "step": step, "opt_state": ({"mu": jax.tree.map(jnp.ones_like, params)}, None)}
    return made


def is_mean(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected[-1])
    for value, *values in zip(*map(jax.tree.leaves, (found, *expected))):
        assert value.dtype == values[0].dtype
        mean = np.mean([np.asarray(one, np.float64) for one in values], 0)
        bits = {2: 2**-8, 4: 2**-22}[value.dtype.itemsize]
        np.testing.assert_allclose(np.asarray(value, np.float64), mean, rtol=bits, atol=bits)


def test_a_manager(tmp_path, capsys):
    saved = trees()
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        for step, tree in saved.items():
            manager.save(100 * step, args=ocp.args.StandardSave(tree))
    out = tmp_path / "average" / "300"
    said = command(capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={out}")
    assert "made of 2 snapshots, steps 200, 300" in said
    assert "not in the average: opt_state" in said
    wanted = [tree["params"] for tree in list(saved.values())[1:]]
    with ocp.CheckpointManager(tmp_path / "average") as manager:
        assert manager.latest_step() == 300
        target = {"params": jax.tree.map(ocp.utils.to_shape_dtype_struct, saved[3]["params"]), "step": 0}
        found = manager.restore(300, args=ocp.args.StandardRestore(target))
    assert found["step"] == 3
    is_mean(found["params"], wanted)
    assert isinstance(found["params"]["dense"]["bias"], jax.Array)
    said = command(capsys, "inspect", tmp_path / "average")
    assert "300 is (an average already, lawa" in said
    command(capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={out}", "--overwrite", "--float32")
    with ocp.CheckpointManager(tmp_path / "average") as manager:
        found = manager.restore(300, args=ocp.args.StandardRestore())
    assert {leaf.dtype for leaf in jax.tree.leaves(found["params"])} == {np.dtype("float32")}


def test_items_of_a_manager(tmp_path, capsys):
    """Several trees, of which one is an EMA, and JSON."""
    saved = trees((1, 2))
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        for step, tree in saved.items():
            half = {"params": jax.tree.map(lambda leaf: leaf / 2, tree["params"])}
            items = {"state": ocp.args.StandardSave(tree), "ema": ocp.args.StandardSave(half)}
            manager.save(step, args=ocp.args.Composite(**items, about=ocp.args.JsonSave({"a": step})))
    out = tmp_path / "average" / "2"
    said = command(capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={out}")
    assert "averaged too, each on its own: ema.params (4 tensors)" in said
    with ocp.CheckpointManager(tmp_path / "average") as manager:
        found = manager.restore(2, args=ocp.args.Composite(
            state=ocp.args.StandardRestore(), ema=ocp.args.StandardRestore(), about=ocp.args.JsonRestore(),
        ))  # fmt: skip
    is_mean(found.state["params"], [tree["params"] for tree in saved.values()])
    is_mean(found.ema["params"], [jax.tree.map(lambda leaf: leaf / 2, tree["params"]) for tree in saved.values()])
    assert found.about == {"a": 2}
    out = tmp_path / "ema.safetensors"
    command(capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={out}", "--key=ema.params")
    from safetensors.flax import load_file

    assert load_file(out).keys() == {"dense.kernel", "dense.bias", "blocks.0", "blocks.1"}


def test_a_checkpointer(tmp_path, capsys):
    saved = [tree["params"] for tree in trees().values()]
    with ocp.StandardCheckpointer() as checkpointer:
        for step, tree in enumerate(saved, start=1):
            checkpointer.save(tmp_path / "run" / f"checkpoint_{step}", tree)
    out = tmp_path / "average"
    said = command(capsys, "average", tmp_path / "run", "--lawa=window=3", f"--out={out}")
    assert f'load: orbax.checkpoint.StandardCheckpointer().restore("{out}")' in said
    with ocp.StandardCheckpointer() as checkpointer:
        is_mean(checkpointer.restore(out), saved)


def test_without_orbax_it_is_called_by_its_name(tmp_path, capsys, monkeypatch):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "checkpoint_1", {"w": jnp.ones(2)})
    monkeypatch.setattr(orbax, "is_installed", lambda: False)
    said = command(capsys, "inspect", tmp_path)
    assert said.startswith(
        f"error: {tmp_path / 'checkpoint_1'} is a checkpoint of Orbax, which is not read: install orbax"
    )
    assert said.count("\n") == 1


def test_damage_is_one_line(tmp_path, capsys):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "checkpoint_1", {"w": jnp.ones(2)})
    (tmp_path / "checkpoint_1" / "_METADATA").write_text("{")
    said = command(capsys, "inspect", tmp_path)
    assert said.startswith(f"error: {tmp_path / 'checkpoint_1'}")
    assert said.count("\n") == 1

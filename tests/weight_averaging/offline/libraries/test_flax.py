"""Checkpoints that Flax writes, as the AlgoPerf harness in JAX has it write them, averaged and restored by Flax."""

import pytest

flax = pytest.importorskip("flax")
optax = pytest.importorskip("optax")
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from flax.training import checkpoints, train_state  # noqa: E402

from tests.support.forms import command  # noqa: E402
from tests.support.jax_runs import LAWA, Run  # noqa: E402
from tests.weight_averaging.jax.test_jax_checkpoints import Net  # noqa: E402
from weight_averaging.offline.forms import flax_format  # noqa: E402

pytestmark = pytest.mark.trainers


@pytest.fixture(autouse=True)
def _without_orbax():
    before = flax.config.flax_use_orbax_checkpointing
    flax.config.update("flax_use_orbax_checkpointing", False)
    yield
    flax.config.update("flax_use_orbax_checkpointing", before)


def save(folder, contents, step) -> None:
    checkpoints.save_checkpoint(str(folder), contents, step, keep=99)


def train(folder, steps: int = 3) -> list[dict]:
    """Checkpoints with the official harness's keys, of a batch norm, bfloat16 and float16; what each held."""
    variables = Net().init(jax.random.key(0), jnp.ones((2, 3)))
    params, state = variables["params"], {"batch_stats": variables["batch_stats"]}
    optimizer = optax.adam(0.1)
    optimizer_state = optimizer.init(params)
    held = []
    for step in range(1, steps + 1):
        inputs = jax.random.normal(jax.random.key(step), (4, 3))

        def loss(params, inputs=inputs, state=state):
            outputs, new = Net().apply({"params": params, **state}, inputs, mutable=["batch_stats"])
            return jnp.square(outputs - 1).sum(), dict(new)

        gradients, state = jax.grad(loss, has_aux=True)(params)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state)
        params = optax.apply_updates(params, updates)
        contents = {
            "model_params": params,
            "optimizer_state": optimizer_state,
            "model_state": state,
            "train_state": {"is_time_remaining": True, "accumulated_submission_time": 1.5},
            "eval_results": [(step, {"validation/loss": np.float32(0.5)})],
            "global_step": 10 * step,
            "preemption_count": 0,
        }
        save(folder, contents, 10 * step)
        held.append(contents)
    return held


def assert_mean(found, trees) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(trees[-1])
    for leaf, *leaves in zip(*map(jax.tree.leaves, (found, *trees))):
        expected = np.mean([np.asarray(one, np.float64) for one in leaves], 0)
        assert leaf.dtype == leaves[0].dtype
        bits = {2: 2**-8, 4: 2**-22}[leaf.dtype.itemsize]
        np.testing.assert_allclose(np.asarray(leaf, np.float64), expected, rtol=bits, atol=bits)


def test_what_the_algoperf_harness_in_jax_saves(tmp_path, capsys):
    held = train(tmp_path / "run")
    out = tmp_path / "out" / "checkpoint_30"
    said = command(capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={out}")
    assert "3 snapshots, steps 10 to 30" in said
    assert "the latest is a Flax checkpoint" in said
    assert "averaged too, each on its own: model_state (2 tensors)" in said
    assert "not in the average: optimizer_state, train_state" in said
    restored = checkpoints.restore_checkpoint(str(out), target=None)
    assert restored.keys() == {"model_params", "model_state", "eval_results", "global_step", "preemption_count"}
    for key in ("model_params", "model_state"):
        assert_mean(restored[key], [one[key] for one in held[1:]])
    into = checkpoints.restore_checkpoint(str(out), {key: held[0][key] for key in ("model_params", "global_step")})
    assert_mean(into["model_params"], [one["model_params"] for one in held[1:]])
    assert into["global_step"] == 30
    assert restored["eval_results"]["0"]["1"] == {"validation/loss": np.float32(0.5)}


def test_of_the_averages_names_can_be_made_trees_again(tmp_path, capsys):
    from safetensors.flax import load_file

    held = train(tmp_path)
    out = tmp_path / "average.safetensors"
    said = command(capsys, "average", tmp_path, "--lawa=window=3", f"--out={out}", "--float32")
    assert f'flax.traverse_util.unflatten_dict(safetensors.flax.load_file("{out}"), sep=".")' in said
    found = flax.traverse_util.unflatten_dict(load_file(out), sep=".")
    trees = [jax.tree.map(lambda leaf: leaf.astype(jnp.float32), one["model_params"]) for one in held]
    assert_mean(found, trees)


def test_a_train_state_and_variables_alone(tmp_path, capsys):
    variables = Net().init(jax.random.key(0), jnp.ones((2, 3)))
    for name, of in (("state", lambda v: state_of(v["params"])), ("variables", lambda v: v)):
        trees = [jax.tree.map(lambda leaf, by=by: leaf + by, variables) for by in (1, 2)]
        for step, tree in enumerate(trees, start=1):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"step_{step}.msgpack").write_bytes(flax.serialization.to_bytes(of(tree)))
        out = tmp_path / name / "average.msgpack"
        command(capsys, "average", tmp_path / name, "--lawa=window=2", f"--out={out}")
        restored = flax.serialization.msgpack_restore(out.read_bytes())
        assert "opt_state" not in restored
        assert_mean(restored["params"], [tree["params"] for tree in trees])
        assert ("batch_stats" in restored) == (name == "variables")
        assert "left out: average.msgpack ('average' in its name)" in command(capsys, "inspect", tmp_path / name)


def state_of(params):
    return train_state.TrainState.create(apply_fn=Net().apply, params=params, tx=optax.adam(0.1))


def test_arrays_in_parts(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 40)
    monkeypatch.setattr(flax_format, "_MOST", 40)
    held = [{"params": {"kernel": np.arange(24.0, dtype="float32").reshape(4, 6) * step, "b": np.ones(2, "float32")},
             "rest": {"table": np.arange(30, dtype="int32")}} for step in (1, 3)]  # fmt: skip
    for step, tree in enumerate(held, start=1):
        (tmp_path / f"checkpoint_{step}").write_bytes(flax.serialization.msgpack_serialize(tree))
    out = tmp_path / "average.msgpack"
    command(capsys, "average", tmp_path, "--lawa=window=2", f"--out={out}")
    restored = flax.serialization.msgpack_restore(out.read_bytes())
    assert_mean(restored["params"], [tree["params"] for tree in held])
    np.testing.assert_array_equal(restored["rest"]["table"], held[0]["rest"]["table"])


def test_whole_numbers_as_keys(tmp_path, capsys):
    for step in (1, 2):
        tree = {"params": {"w": np.full(2, step, "float32")}, "sizes": {3: "three"}}
        (tmp_path / f"checkpoint_{step}").write_bytes(flax.serialization.msgpack_serialize(tree))
    try:
        flax.serialization.msgpack_restore((tmp_path / "checkpoint_1").read_bytes())
    except ValueError as error:
        pytest.skip(f"this flax does not read what it writes: {error}")
    out = tmp_path / "average.msgpack"
    command(capsys, "average", tmp_path, "--lawa=window=2", f"--out={out}")
    restored = flax.serialization.msgpack_restore(out.read_bytes())
    assert restored["params"]["w"].tolist() == [1.5, 1.5]
    assert restored["sizes"] == {3: "three"}


def test_an_average_may_not_pass_for_a_snapshot(tmp_path, capsys):
    train(tmp_path)
    said = command(capsys, "average", tmp_path, "--lawa=window=2", f"--out={tmp_path / 'checkpoint_40'}")
    assert said == (
        f"error: {tmp_path / 'checkpoint_40'}: a file of msgpack cannot say that it is an average, and would be a "
        "snapshot there: name another folder, or average.msgpack\n"
    )


@pytest.mark.parametrize("statistics", ["average", "latest"])
def test_the_raw_weights_of_a_submission_are_averaged(tmp_path, capsys, statistics):
    """The official harness saves right after an evaluation, when the average is in the model."""
    raw = []
    for step in (7, 9):
        run = Run("lawa", **LAWA, averaging_buffers=statistics).update(step)
        raw.append({"params": jax.tree.map(np.array, run.params), "statistics": run.mean()})
        run.prepare()
        assert not np.array_equal(run.kernel(), raw[-1]["params"]["kernel"])
        contents = {"model_params": run.params, "optimizer_state": run.state[0], "model_state": run.model_state}
        save(tmp_path / "run", contents | {"global_step": step}, step)
    out = tmp_path / "average.msgpack"
    said = command(capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={out}")
    assert "averaged are the raw weights, which the optimizer's state has, not the average in the model" in said
    restored = checkpoints.restore_checkpoint(str(out), target=None)
    assert_mean(restored["model_params"], [one["params"] for one in raw])
    assert_mean(restored["model_state"]["batch_stats"]["mean"].reshape(-1), [one["statistics"] for one in raw])

"""Files of Equinox, as numpy writes their leaves; with the library itself where it is installed."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.forms import command
from weight_averaging.averages import SnapshotError
from weight_averaging.offline.forms import open_checkpoint
from weight_averaging.offline.forms.equinox import EquinoxSource


def write(path, leaves, line=None):
    with open(path, "wb") as file:
        if line is not None:
            file.write((json.dumps(line) + "\n").encode())
        for leaf in leaves:
            np.save(file, leaf)


def read(path, count):
    with open(path, "rb") as file:
        return [np.load(file) for _ in range(count)]


@pytest.mark.parametrize("line", [None, {"width": 3}])
def test_leaves_are_averaged_one_by_one(tmp_path, capsys, line):
    saved = []
    for step in (1, 2, 3):
        rng = np.random.default_rng(step)
        bits = rng.integers(0x3F00, 0x4000, 4).astype(np.uint16).view("V2")  # bfloat16
        leaves = [rng.normal(size=(2, 3)).astype("f4"), bits, np.arange(3) + step, np.array(0.1), rng.normal(size=2)]
        write(tmp_path / f"step_{step}.eqx", leaves, line)
        saved.append(leaves)
    out = tmp_path / "average.eqx"
    said = command(capsys, "average", tmp_path, "--lawa=window=2", f"--out={out}")
    assert "made of 2 snapshots, steps 2, 3" in said
    assert f'load: equinox.tree_deserialise_leaves("{out}", model)' in said
    if line:
        data = out.read_bytes()
        assert data.startswith(b'{"width": 3}\n')
        (tmp_path / "without").write_bytes(data.partition(b"\n")[2])
    found = read(tmp_path / "without" if line else out, 5)
    np.testing.assert_allclose(found[0], (saved[1][0].astype("f8") + saved[2][0]) / 2, rtol=1e-6)
    halves = [torch.from_numpy(one[1].view("i2")).view(torch.bfloat16).double() for one in (*saved[1:], found)]
    torch.testing.assert_close(halves[2], ((halves[0] + halves[1]) / 2).bfloat16().double())
    np.testing.assert_array_equal(found[2], saved[2][2])
    assert found[3] == 0.1
    np.testing.assert_allclose(found[4], (saved[1][4] + saved[2][4]) / 2, rtol=1e-15)
    assert "leave out --float32" in command(
        capsys, "average", tmp_path, "--lawa=window=2", f"--out={tmp_path / 'avg.eqx'}", "--float32"
    )
    assert "cannot say that it is an average" in command(
        capsys, "average", tmp_path, "--lawa=window=2", f"--out={tmp_path / 'step_9.eqx'}"
    )


@settings(deadline=None)
@given(data=st.binary(max_size=300), cut=st.integers(0, 400), what=st.sampled_from(["any", "magic", "cut", "flip"]))
def test_whatever_a_file_holds_is_one_line(tmp_path_factory, data, cut, what):
    path = tmp_path_factory.getbasetemp() / "step_1.eqx"
    write(path, [np.ones((2, 2), "f4"), np.ones(3, "f4")])
    whole = bytearray(path.read_bytes())
    if what == "flip":
        whole[cut % len(whole)] ^= 1 + cut % 255
    contents = {"any": data, "magic": b"\x93NUMPY" + data, "cut": bytes(whole[:cut]), "flip": bytes(whole)}[what]
    path.write_bytes(contents)
    said = ""
    try:
        source = open_checkpoint(path)
        source.read(list(source.layout))
    except SnapshotError as error:
        said = str(error)
    assert not said or (str(path) in said and "\n" not in said)


@pytest.mark.trainers
def test_equinox(tmp_path, capsys):
    eqx = pytest.importorskip("equinox", exc_type=ImportError)
    jax = pytest.importorskip("jax")
    import jax.numpy as jnp

    model = eqx.nn.MLP(3, 1, 4, 2, key=jax.random.key(0))
    model = eqx.tree_at(lambda tree: tree.layers[0].bias, model, replace_fn=lambda leaf: leaf.astype(jnp.bfloat16))
    saved = []
    for step in (1, 2, 3):

        def loss(model, step=step):
            return jnp.square(jax.vmap(model)(jax.random.normal(jax.random.key(step), (4, 3)))).mean()

        gradients = eqx.filter_grad(loss)(model)
        model = eqx.apply_updates(model, jax.tree.map(lambda leaf: -0.1 * leaf, gradients))
        eqx.tree_serialise_leaves(tmp_path / f"step_{step}.eqx", model)
        saved.append(jax.tree.leaves(eqx.filter(model, eqx.is_array)))
    out = tmp_path / "average.eqx"
    command(capsys, "average", tmp_path, "--lawa=window=2", f"--out={out}")
    loaded = jax.tree.leaves(eqx.filter(eqx.tree_deserialise_leaves(out, model), eqx.is_array))
    for leaf, *leaves in zip(loaded, *saved[1:]):
        assert leaf.dtype == leaves[0].dtype
        mean = np.mean([np.asarray(one, np.float64) for one in leaves], 0)
        bits = {2: 2**-8, 4: 2**-22}[leaf.dtype.itemsize]
        np.testing.assert_allclose(np.asarray(leaf, np.float64), mean, rtol=bits, atol=bits)
    assert EquinoxSource(out).layout["leaf_0"] == ((4, 3), torch.float32)

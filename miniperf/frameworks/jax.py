"""JAX under the runner: models, their states and optimizer states are pytrees of arrays.

As under the official harness an optimizer state is a pair: a pytree, which is saved, and whatever goes along with it.
"""

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from miniperf import cache
from miniperf.frameworks import OneProcess
from weight_averaging.errors import UsageError

SAVED = ("model_params", "optimizer_state", "model_state")
CONTENTS = "contents"  # the entry of the archive that holds all but the arrays


class Jax(OneProcess):
    name = "jax"

    def begin(self) -> None:
        jax.config.update("jax_platforms", "cpu")
        if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
            # A run of a minute would compile for six seconds; its twins and its resumption do so for none. Compiled
            # code is for the processor of this machine.
            jax.config.update("jax_compilation_cache_dir", str(cache.folder() / "jax" / platform.node()))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
        one_thread = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        # Read when JAX first computes.
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {one_thread}".strip()

    def key(self, pair: Any) -> jax.Array:
        return jnp.asarray(np.asarray(pair, np.uint32))

    def seed(self, seed: int) -> None:
        """There is no global generator."""

    def random_state(self) -> None:
        return None

    def set_random_state(self, state: None) -> None:
        pass

    def wait(self, model: Any) -> None:
        jax.block_until_ready(model)

    def learning_rate(self, optimizer_state: Any) -> None:
        return None

    def state(self, model: Any, optimizer_state: tuple[Any, Any], model_state: Any) -> dict[str, Any]:
        trees = (model, optimizer_state[0], model_state)
        return {name: _by_path(tree) for name, tree in zip(SAVED, trees, strict=True)}

    def restore(
        self, contents: Mapping[str, Any], model: Any, optimizer_state: tuple[Any, Any], model_state: Any
    ) -> tuple[Any, tuple[Any, Any], Any]:
        fresh = (model, optimizer_state[0], model_state)
        model, state, model_state = (_like(tree, contents[name]) for name, tree in zip(SAVED, fresh, strict=True))
        return model, (state, optimizer_state[1]), model_state

    def write(self, contents: dict[str, Any], file: IO[bytes]) -> None:
        """numpy's archive of arrays, with all else in one of them, as JSON."""
        arrays: dict[str, np.ndarray] = {}

        def packed(value: Any) -> Any:
            if isinstance(value, np.ndarray):
                arrays[str(len(arrays))] = value
                return {"array": str(len(arrays) - 1), "dtype": str(value.dtype)}
            if isinstance(value, Mapping):
                return {"items": {key: packed(item) for key, item in value.items()}}
            return [packed(item) for item in value] if isinstance(value, list | tuple) else value

        text = json.dumps(packed(contents), default=lambda scalar: scalar.item())
        np.savez(file, **arrays, **{CONTENTS: np.frombuffer(text.encode(), np.uint8)})  # type: ignore[arg-type]

    def read(self, path: Path) -> dict[str, Any]:
        with np.load(path, allow_pickle=False) as arrays:

            def unpacked(value: Any) -> Any:
                if isinstance(value, dict) and "array" in value:
                    array = arrays[value["array"]]  # numpy knows no bfloat16 and gives its bytes
                    return array.view(jnp.dtype(value["dtype"])) if array.dtype.kind == "V" else array
                if isinstance(value, dict):
                    return {key: unpacked(item) for key, item in value["items"].items()}
                return [unpacked(item) for item in value] if isinstance(value, list) else value

            return unpacked(json.loads(arrays[CONTENTS].tobytes()))

    def nbytes(self, contents: Any) -> int:
        return sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(contents) if not isinstance(leaf, str))

    def snapshot_writer(self, folder: Path, interval: int, about: dict[str, Any]) -> Any:
        raise UsageError("--save_snapshots_every_n_steps is for --framework=pytorch: snapshots are state dicts")

    def versions(self) -> dict[str, str]:
        return {f"{package.__name__}_version": package.__version__ for package in (jax, flax, optax)}


def _by_path(tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in leaves}


def _like(fresh: Any, saved: Mapping[str, np.ndarray]) -> Any:
    """The saved leaves in the tree of the fresh ones, as arrays of their own.

    A leaf may be empty in one of them: raw weights, say, that are held only while an average is evaluated.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(fresh)
    names = [jax.tree_util.keystr(path) for path, _ in paths]
    if differing := sorted(set(names) ^ set(saved)):
        raise ValueError(f"only one of both has {', '.join(differing)}")
    for name, (_, leaf) in zip(names, paths, strict=True):
        there = saved[name]
        if leaf.dtype != there.dtype or (leaf.shape != there.shape and leaf.size and there.size):
            raise ValueError(f"{name} is {there.dtype}{list(there.shape)}, not {leaf.dtype}{list(leaf.shape)}")
    return jax.tree.unflatten(structure, [jnp.array(saved[name]) for name in names])


FRAMEWORK = Jax()

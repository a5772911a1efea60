"""States as the harness restores them."""

from typing import Any

import jax
import numpy as np
from absl import logging

from .training import on_every_device

Shape = tuple[int, ...]


def shapes(tree: Any) -> dict[str, Shape]:
    """The shapes of a tree's leaves, by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in leaves}


def unstacked(tree: Any, expected: dict[str, Shape]) -> Any:
    """`tree`, restored from a checkpoint, in the shapes that it should have.

    The official harness of September 2025 replicates what it restores as for `jax.pmap`. Every leaf has one more axis,
    of as many equal parts as there are devices. It has yet another one for each time that a finished run was resumed.

    Raises:
        ValueError: in one line, if it is not the state of this model and of these hyperparameters.
    """
    found = shapes(tree)
    first = next(iter(expected))
    extra = len(found.get(first, ())) - len(expected[first])
    if extra > 0:
        logging.warning("the restored state has %d leading axes too many, one part for each device: taken off", extra)
        tree = on_every_device(jax.tree.map(lambda leaf: leaf[(0,) * extra], tree))
        found = shapes(tree)
    for name in {**expected, **found}:
        if 0 in found.get(name, ()):  # saved between evaluations, when no raw weights are held
            continue
        if name not in expected or name not in found or _alike(expected[name]) != _alike(found[name]):
            raise ValueError(
                f"cannot resume: {name} is {found.get(name, 'not')} in the checkpoint, {expected.get(name, 'not')} for "
                "this model and these hyperparameters; give those of the first start, or another --experiment_name"
            )
    return tree


def _alike(shape: Shape) -> Shape:
    """Without axes of length one, which some official workloads' statistics get by the first update."""
    return tuple(length for length in shape if length != 1)

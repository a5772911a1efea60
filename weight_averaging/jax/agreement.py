"""Decisions that the devices of a `jax.shard_map` have to make alike."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax


def everywhere(true: Array, shared: Any) -> Array:
    """Whether it is true on all devices that have `shared` in common: bool[].

    Under jit there is one truth. Within `jax.shard_map` every device has seen its own shards alone. Those along an axis
    on which `shared` varies are runs of their own, as are those of a `jax.pmap` whose axis has no name.
    """
    manual = getattr(jax.sharding.get_abstract_mesh(), "manual_axes", ())
    along = _varying(true) or manual  # with check_vma=False JAX does not tell
    axes = tuple(a for a in manual if a in along and a not in _varying(shared) and not str(a).startswith("_internal"))
    if not axes:
        return true
    untrue: Array = lax.psum(jnp.int32(~true), axes)  # type: ignore[no-untyped-call]
    return untrue == 0


def _varying(value: Any) -> Any:
    """The axes of a shard_map along which a value is not known to be one and the same."""
    kind = jax.typeof(value)
    kind = getattr(kind, "manual_axis_type", None) or kind
    return getattr(kind, "varying", None) or getattr(kind, "vma", None) or frozenset()

"""Where arrays are under JAX, by the names of `algoperf.jax_sharding_utils`: weights on every device, batches split."""

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def get_replicate_sharding() -> NamedSharding:
    """Of what is whole on every device."""
    return NamedSharding(Mesh(jax.devices(), ("batch",)), PartitionSpec())


def get_batch_dim_sharding() -> NamedSharding:
    """Of what is split over the devices along its first axis."""
    return NamedSharding(Mesh(jax.devices(), ("batch",)), PartitionSpec("batch"))

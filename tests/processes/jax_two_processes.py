"""A window in host memory of weights that two processes have whole; run twice by test_jax_devices.py."""

import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from weight_averaging.jax import host_lawa, lawa

if __name__ == "__main__":
    number, port, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    jax.distributed.initialize(f"localhost:{port}", 2, number)
    whole = NamedSharding(jax.make_mesh((4,), ("x",)), P())

    def params_of(value: float) -> dict:
        values = np.full(8, value, np.float32)
        return {"w": jax.make_array_from_callback((8,), whole, lambda at: values[at]), "seen": np.int32(3)}

    for make in (lawa, host_lawa):
        averager = make(1, 2)
        state = averager.init(params_of(0))
        for step in (1, 2, 3):
            state = averager.update(state, params_of(step), step)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder / make.__name__, state)
            checkpointer.wait_until_finished()
            like = jax.tree.map(ocp.utils.to_shape_dtype_struct, averager.init(params_of(0)))
            state = checkpointer.restore(folder / make.__name__, like)
        averager.check(state, dict(averager.settings))
        for step, expected in ((4, 3.5), (5, 4.5)):
            state = averager.update(state, params_of(step), step)
            average = averager.average(state, params_of(step))["w"]
            assert average.sharding.is_equivalent_to(whole, 1)
            assert [shard.data.tolist() for shard in average.addressable_shards] == [[expected] * 8] * 2
    print("ok")

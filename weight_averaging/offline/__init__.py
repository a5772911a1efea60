"""Averages of saved weights: a stream of snapshots in, any number of averages out, each snapshot read once.

    from weight_averaging import offline

    wanted = [(offline.LAWA(window=20, interval=64), 6400), (offline.EMA(decay=0.9, interval=64), 6400)]
    plan = offline.Plan(wanted, steps=range(64, 6401, 64))
    for result in plan.run((step, torch.load(f"step_{step}.pt", weights_only=True)) for step in plan.needed):
        torch.save(result.state, ...)

LAWA and EMA are, bit for bit, what the online averagers of `weight_averaging.torch` hold at that step. Snapshots are
taken as float32 and the operations come in the same order. Floating-point buffers (batch-norm statistics) are averaged
like parameters, except for those whose mean means nothing (`weight_averaging.tensor_names`); those and integers come
from the latest snapshot. They differ in three ways. Averages of float64 weights are float32 here, as online with
`dtype=torch.float32`. Weights that are not finite are an error here, while a training run goes on without them. A state
dict does not tell frozen parameters and other buffers, which only snapshots of `weight_averaging.offline.recording`
record (`latest_of`).

Reading snapshots in files: `Snapshots`; writing averages to files: `weight_averaging.offline.writing`; saving
snapshots while a model trains: `weight_averaging.offline.recording`. What each average is: `weight_averaging.averages`.
"""

from weight_averaging.averages import (
    EMA,
    LAWA,
    Average,
    FollowsRate,
    Growing,
    Merge,
    Power,
    Ramp,
    SnapshotError,
    Tail,
    Weighted,
)
from weight_averaging.offline.passes.plan import Plan, Result
from weight_averaging.offline.reading.best import Best, best
from weight_averaging.offline.reading.snapshots import Snapshots
from weight_averaging.offline.reading.unaveraged import latest_of

__all__ = [
    "EMA", "LAWA", "Average", "Best", "FollowsRate", "Growing", "Merge", "Plan", "Power", "Ramp", "Result",
    "SnapshotError", "Snapshots", "Tail", "Weighted", "best", "latest_of",
]  # fmt: skip

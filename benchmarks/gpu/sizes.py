"""How large the measured things are: as they are used, or small, to see that all of it runs."""

from dataclasses import dataclass

from miniperf.workloads.finewebedu_lm.sizes import PAPER, Sizes


@dataclass(frozen=True)
class Scale:
    """Of the measurements.

    Attributes:
        large: weights of the model with few large tensors.
        model: the language model that stands for one with many small ones, and is trained.
        window: snapshots of a LAWA.
        rounds: timings of each action; the median counts.
        batch, length: sequences a training step, tokens a sequence.
        turn: steps that are timed together, the longest interval.
        turns: of each variant.
        criteo: weights of criteo1tb's model.
        swaps: after which memory must not have grown.
    """

    large: int
    model: Sizes
    window: int
    rounds: int
    batch: int
    length: int
    turn: int
    turns: int
    criteo: int
    swaps: int


# 539 million: criteo1tb's DLRM in the harness's PyTorch.
FULL = Scale(
    large=500_000_000, model=PAPER, window=20, rounds=15, batch=8, length=1024, turn=64, turns=3, criteo=539_000_000,
    swaps=1000,
)  # fmt: skip
SMALL = Scale(
    large=200_000, model=Sizes(vocabulary=97, context=32, width=32, layers=2, heads=2, hidden=64), window=4, rounds=3,
    batch=2, length=16, turn=8, turns=2, criteo=100_000, swaps=20,
)  # fmt: skip

"""Many averages of one model in one pass over its weights."""

from collections.abc import Iterable
from typing import Unpack

from weight_averaging.averages import Average
from weight_averaging.torch.averager import Averager
from weight_averaging.torch.options import Model, Options, shows_options


class Averages(Averager):
    """Any number of averages of one model, so that one training run yields a whole grid.

    Snapshots that are due after the same update are taken in one pass. The weights are read from memory once. Each EMA
    adds its own reading and writing, and windows of one interval share the longest one's.

    Args:
        averages: descriptions, each with an interval: of `weight_averaging.averages`, or your own.
        model, placement, buffers, include, exclude, check_finite, dtype, masters: see `Averager`.
        process_group, model_parallel_group: see `Averager`.
    Raises:
        TypeError: a description is of an average whose number of snapshots grows.
        ValueError: one has no interval, or comes twice, or there are none.
        MemoryError: the windows would not fit.

    >>> import torch
    >>> from weight_averaging.averages import EMA, LAWA
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> grid = Averages(model, [LAWA(window=2, interval=1), LAWA(window=3, interval=1), EMA(decay=0.5, interval=1)])
    >>> for step in (1, 2, 3):
    ...     _ = model.weight.data.fill_(float(step))
    ...     _ = grid.update(step)
    >>> for average in grid.averages:
    ...     grid.select(average)
    ...     with grid.averaged():
    ...         print(average, "->", model.weight.item())
    lawa window=2 interval=1 -> 2.5
    lawa window=3 interval=1 -> 2.0
    ema decay=0.5 interval=1 -> 2.25
    """

    @shows_options
    def __init__(self, model: Model, averages: Iterable[Average], **options: Unpack[Options]) -> None:
        super().__init__(model, averages, **options)

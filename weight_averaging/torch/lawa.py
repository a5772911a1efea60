"""LAWA: the mean of the latest L snapshots."""

from typing import Unpack

from weight_averaging import averages
from weight_averaging.averages.horizon import WINDOW, for_run
from weight_averaging.torch.averager import Averager
from weight_averaging.torch.options import Model, Options, check_names, shows_options


class LAWA(Averager):
    """Latest weight averaging (Kaddour 2022; Algorithm 1 of Ajroldi et al., ICML 2025, arXiv 2502.06761).

    After every `interval` updates the weights join a queue that holds the latest `window` snapshots; the average is

        (1 / L) * sum of theta_{t - i nu},  i = 0, ..., L - 1,

    with nu the interval and t the last update that was a multiple of it. Memory: window x 4 bytes per parameter for the
    snapshots, and (window + 1) x 4 beside an accelerator with `check_finite`. Of a `process_group` the first rank alone
    holds them. The raw weights take one copy of the model. On CUDA, snapshots travel to host memory while training goes
    on.

    Args:
        interval: updates between snapshots, nu >= 1.
        window: snapshots in the average, L >= 1.
        start: the first update whose weights may be collected; 0: the initial weights, by `update(0)` before training.
        allow_partial: be ready from the first snapshot on, with the mean over those held. By default the average is
            ready when `window` snapshots are.
        model, placement, buffers, include, exclude, check_finite, dtype, masters: see `Averager`.
        process_group, model_parallel_group: see `Averager`.
    Raises:
        MemoryError: the snapshots would not fit, before any is taken.

    >>> import torch
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> lawa = LAWA(model, interval=1, window=3)
    >>> for step in (1, 2, 3, 4):
    ...     _ = model.weight.data.fill_(float(step))
    ...     _ = lawa.update(step)
    >>> with lawa.averaged():
    ...     print(model.weight.item())
    3.0
    >>> print(model.weight.item())
    4.0
    """

    @shows_options
    def __init__(
        self,
        model: Model,
        *,
        interval: int,
        window: int,
        start: int = 1,
        allow_partial: bool = False,
        **options: Unpack[Options],
    ) -> None:
        described = averages.LAWA(window=window, allow_partial=allow_partial, interval=interval, start=start)
        self.window, self.allow_partial = described.window, allow_partial
        super().__init__(model, described, **options)

    @classmethod
    @shows_options
    def for_run(
        cls,
        model: Model,
        total_updates: int,
        *,
        horizon: float | None = None,
        window: int = WINDOW,
        start: int = 1,
        allow_partial: bool = False,
        **options: Unpack[Options],
    ) -> "LAWA":
        """A LAWA that covers a share of a run whose length is known.

        Args:
            total_updates: optimizer updates of the run, T. A run of more than twice as many gets a warning.
            horizon: the share of it that the window covers, in (0, 1]; None: `horizon.suggested_horizon`, 1 % of
                a run of 10,000 updates or more and 4 % of a shorter one.
            window: snapshots that cover it, at most: interval = horizon * T / window.
            start, allow_partial: see `LAWA`.
            placement, buffers, include, exclude, check_finite, dtype, masters: see `Averager`.
            process_group, model_parallel_group: see `Averager`.

        >>> import torch
        >>> lawa = LAWA.for_run(torch.nn.Linear(1, 1), total_updates=120_000)
        >>> lawa.interval, lawa.window
        (60, 20)
        """
        check_names(options, cls.for_run)
        interval, window = for_run(total_updates, horizon, window)
        made = cls(model, interval=interval, window=window, start=start, allow_partial=allow_partial, **options)
        made._total = total_updates
        return made

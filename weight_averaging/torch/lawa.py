"""LAWA: the mean of the latest L snapshots."""

from typing import Any

from torch import Tensor, nn

from weight_averaging.averages.checks import check_count
from weight_averaging.averages.horizon import WINDOW, for_run
from weight_averaging.include_exclude import Choice
from weight_averaging.torch.averager import Averager
from weight_averaging.torch.model.blocks import Block
from weight_averaging.torch.tracks.make import window_track
from weight_averaging.torch.tracks.window import WindowTrack


class LAWA(Averager):
    """Latest weight averaging (Kaddour 2022; Algorithm 1 of Ajroldi et al., ICML 2025, arXiv 2502.06761).

    After every `interval` updates the weights join a queue that holds the latest `window` snapshots; the average is

        (1 / L) * sum of theta_{t - i nu},  i = 0, ..., L - 1,

    with nu the interval and t the last update that was a multiple of it. Memory: window x 4 bytes per parameter for the
    snapshots, (window + 1) x 4 beside an accelerator with `check_finite`, on the first rank of a `process_group` only,
    and one copy of the model for the raw weights. On CUDA, snapshots travel to host memory while training goes on.

    Args:
        window: snapshots in the average, L >= 1.
        allow_partial: be ready from the first snapshot on, with the mean over those held. By default the average is
            ready when `window` snapshots are.
        placement: where snapshots live: `"device"` is where the model is, `"host"` host memory, `"auto"` the device
            if they take no more than a tenth of its free memory.
        model, interval, start, buffers, include, exclude, check_finite, process_group: see `Averager`.
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

    def __init__(
        self,
        model: nn.Module,
        *,
        interval: int,
        window: int,
        start: int = 1,
        allow_partial: bool = False,
        placement: str = "auto",
        buffers: str = "average",
        include: Choice = None,
        exclude: Choice = None,
        check_finite: bool = True,
        process_group: Any = None,
    ) -> None:
        super().__init__(
            model,
            start=start,
            buffers=buffers,
            include=include,
            exclude=exclude,
            check_finite=check_finite,
            process_group=process_group,
        )
        self.interval = check_count("interval", interval)
        self.window = check_count("window", window)
        self.allow_partial = allow_partial
        self._placement = placement
        self._build()

    def _make_tracks(self) -> None:
        self._track = window_track(
            self._weights,
            self._ranks,
            self._copies,
            self.interval,
            self.start,
            self.window,
            self._placement,
            self._defers,
        )

    @classmethod
    def for_run(
        cls, model: nn.Module, total_updates: int, *, horizon: float | None = None, window: int = WINDOW, **options: Any
    ) -> "LAWA":
        """A LAWA that covers a share of a run whose length is known.

        Args:
            total_updates: of the run, T.
            horizon: the share of it that the window covers, in (0, 1]; None: `collection.suggested_horizon`, 1 % of
                a run of 10,000 updates or more and 4 % of a shorter one.
            window: snapshots that cover it, at most: interval = horizon * T / window.
            options: further arguments of LAWA.

        >>> import torch
        >>> lawa = LAWA.for_run(torch.nn.Linear(1, 1), total_updates=120_000)
        >>> lawa.interval, lawa.window
        (60, 20)
        """
        interval, window = for_run(total_updates, horizon, window)
        return cls(model, interval=interval, window=window, **options)

    @property
    def _needed(self) -> int:
        return 1 if self.allow_partial else self.window

    def _tracks(self) -> list[WindowTrack]:
        return [self._track]

    @property
    def _shown(self) -> WindowTrack:
        return self._track

    def _average(self, block: Block) -> Tensor:
        return self._track.mean(block, self.window)

    def _hyperparameters(self) -> dict[str, Any]:
        return {"window": self.window, "allow_partial": self.allow_partial, "interval": self.interval}

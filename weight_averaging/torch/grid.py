"""Many averages of one model in one pass over its weights."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from weight_averaging.averages import EMA, LAWA, Average, Power
from weight_averaging.include_exclude import Choice
from weight_averaging.torch.averager import Averager
from weight_averaging.torch.model.blocks import Block
from weight_averaging.torch.tracks.exponential import ExponentialTrack
from weight_averaging.torch.tracks.make import exponential_track, window_track
from weight_averaging.torch.tracks.track import Track
from weight_averaging.torch.tracks.window import WindowTrack


class Averages(Averager):
    """Any number of LAWAs, EMAs and power-function averages of one model, so that one training run yields a whole grid.

    Snapshots that are due after the same update are taken in one pass: the weights are read from memory once, each EMA
    adds its own reading and writing, and LAWAs of one interval share the longest one's window.

    Args:
        averages: descriptions, each with an interval: `weight_averaging.averages.LAWA`, `EMA` and `Power`.
        model, buffers, include, exclude, check_finite, process_group: see `Averager`.
        placement: see `LAWA`; EMAs are in host memory under `"host"` only.
    Raises:
        TypeError: a description is of another kind of average.
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

    def __init__(
        self,
        model: nn.Module,
        averages: Iterable[Average],
        *,
        placement: str = "auto",
        buffers: str = "average",
        include: Choice = None,
        exclude: Choice = None,
        check_finite: bool = True,
        process_group: Any = None,
    ) -> None:
        super().__init__(
            model,
            start=1,
            buffers=buffers,
            include=include,
            exclude=exclude,
            check_finite=check_finite,
            process_group=process_group,
        )
        self.averages = list(averages)
        if not self.averages:
            raise ValueError("no averages to track")
        for number, average in enumerate(self.averages):
            if not isinstance(average, LAWA | EMA | Power):
                raise TypeError(f"{average} cannot be tracked along training: only LAWA, EMA and Power can")
            if average.interval is None:
                raise ValueError(f"{average} needs an interval")
            if average in self.averages[:number]:
                raise ValueError(f"{average} is there twice")
        self._placement = placement
        self._selected = self.averages[0]
        self._build()

    def _make_tracks(self) -> None:
        windows: dict[tuple[int, int], int] = {}
        for average in self.averages:
            if isinstance(average, LAWA):
                key = (average.interval or 1, average.start)
                windows[key] = max(windows.get(key, 0), average.window)
        shared = {
            key: window_track(self._weights, self._ranks, self._copies, *key, window, self._placement, self._defers)
            for key, window in windows.items()
        }
        self._track_of: dict[Average, Track] = {
            average: shared[average.interval or 1, average.start]
            if isinstance(average, LAWA)
            else exponential_track(self._weights, self._ranks, self._copies, average, self._placement)
            for average in self.averages
        }

    def select(self, average: Average) -> None:
        """Let `ready`, `swap_in` and `averaged` be about this average; at first it is the first one.

        Raises:
            KeyError: it is not tracked.
            RuntimeError: another one is in the model.
        """
        if average not in self._track_of:
            raise KeyError(f"{average} is not among the averages: {', '.join(map(str, self.averages))}")
        if self._swapped and average != self._selected:
            raise RuntimeError(f"select({average}) while {self._selected} is in the model: call swap_out() first")
        self._selected = average
        self._said.discard("not ready")

    @property
    def _needed(self) -> int:
        return self._selected.window if isinstance(self._selected, LAWA) else 1

    @property
    def _shown(self) -> Track:
        return self._track_of[self._selected]

    def _tracks(self) -> Sequence[Track]:
        return list(dict.fromkeys(self._track_of.values()))

    def _average(self, block: Block) -> Tensor:
        track = self._shown
        if isinstance(track, WindowTrack):
            assert isinstance(self._selected, LAWA)
            return track.mean(block, self._selected.window)
        assert isinstance(track, ExponentialTrack)
        return track.mean(block)

    def _hyperparameters(self) -> dict[str, Any]:
        return {"averages": [str(average) for average in self.averages]}

"""EMA: an exponential average of snapshots."""

from typing import Any

from torch import Tensor, nn

from weight_averaging.averages import exponential
from weight_averaging.averages.checks import check_count
from weight_averaging.averages.horizon import WINDOW, decay_from_window, for_run
from weight_averaging.include_exclude import Choice
from weight_averaging.torch.averager import Averager
from weight_averaging.torch.model.blocks import Block
from weight_averaging.torch.tracks.exponential import ExponentialTrack
from weight_averaging.torch.tracks.make import exponential_track


class EMA(Averager):
    """Exponential average of the weights (Algorithm 2 of Ajroldi et al., ICML 2025, arXiv 2502.06761).

    Starts at the first snapshot, so that nothing of the random initialisation is in it, then after every `interval`
    updates

        ema <- decay * ema + (1 - decay) * theta_t,

    so that no correction for the start ("debiasing") is needed. Early on a decay near 1 is still nearly that first
    snapshot; with `warmup` or `horizon` the average grows with training.

    Memory: 4 bytes per parameter, and one copy of the model for the raw weights. On an accelerator the latter is held
    during evaluations only; with the average in host memory (8 bytes per parameter there) always, since snapshots
    travel from it.

    Args:
        decay: weight of the past, in [0, 1). `weight_averaging.averages.horizon.decay_from_window` gives the decay that
            matches a LAWA window.
        warmup: let the (k+1)-th snapshot enter with decay min(decay, (1 + k) / (10 + k)).
        horizon: instead of a decay, the share of the updates so far that the average covers, in (0, 1]: the
            power-function average of Karras et al. (EDM2, arXiv 2312.02696, section 3.1) with exponent 2 / horizon - 2,
            as old on average as a window over that share. 0.105 is EDM2's relative length of 0.05.
        placement: `"device"` is where the model is, `"host"` host memory, into which snapshots are copied beside
            training (of replicas, that of the first rank).
        model, interval, start, buffers, include, exclude, check_finite, process_group: see `Averager`. Replicas of a
            group hold an EMA each.
    Raises:
        TypeError: not just one of `decay` and `horizon`.
        MemoryError: it would not fit in host memory.

    >>> import torch
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> ema = EMA(model, decay=0.5)
    >>> for step in (1, 2, 3):
    ...     _ = model.weight.data.fill_(float(step))
    ...     _ = ema.update(step)
    >>> with ema.averaged():
    ...     print(model.weight.item())
    2.25
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        decay: float | None = None,
        horizon: float | None = None,
        warmup: bool = False,
        interval: int = 1,
        start: int = 1,
        placement: str = "device",
        buffers: str = "average",
        include: Choice = None,
        exclude: Choice = None,
        check_finite: bool = True,
        process_group: Any = None,
    ) -> None:
        average = exponential(decay, horizon, warmup, interval, start)
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
        self.decay, self.horizon, self.warmup = decay, horizon, warmup
        self._described, self._placement = average, placement
        self._build()

    def _make_tracks(self) -> None:
        self._track = exponential_track(self._weights, self._ranks, self._copies, self._described, self._placement)

    @classmethod
    def for_run(
        cls, model: nn.Module, total_updates: int, *, horizon: float | None = None, window: int = WINDOW, **options: Any
    ) -> "EMA":
        """The EMA as old on average as `LAWA.for_run` of the same arguments."""
        interval, length = for_run(total_updates, horizon, window)
        return cls(model, interval=interval, decay=decay_from_window(length), **options)

    @property
    def _needed(self) -> int:
        return 1

    def _tracks(self) -> list[ExponentialTrack]:
        return [self._track]

    @property
    def _shown(self) -> ExponentialTrack:
        return self._track

    def _average(self, block: Block) -> Tensor:
        return self._track.mean(block)

    def _hyperparameters(self) -> dict[str, Any]:
        return {"decay": self.decay, "horizon": self.horizon, "warmup": self.warmup, "interval": self.interval}

"""EMA: an exponential average of snapshots."""

from typing import Any

from torch import Tensor, nn

from weight_averaging.collection import check_count, check_decay
from weight_averaging.torch.averager import Averager
from weight_averaging.torch.tracks import ExponentialTrack
from weight_averaging.torch.weights import Block


class EMA(Averager):
    """Exponential average of the weights (Algorithm 2 of Ajroldi et al., ICML 2025, arXiv 2502.06761).

    Starts at the first snapshot, so that nothing of the random initialisation is in it, then after every `interval`
    updates

        ema <- decay * ema + (1 - decay) * theta_t.

    Memory, where the model is: 4 bytes per parameter, and one copy of the model for the raw weights.

    Args:
        decay: weight of the past, in [0, 1). `weight_averaging.collection.decay_from_window` gives the decay that
            matches a LAWA window.
        model, interval, start, buffers, check_finite, process_group: see `Averager`. Replicas of a group hold an EMA
            each.

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
        decay: float,
        interval: int = 1,
        start: int = 1,
        buffers: str = "average",
        check_finite: bool = True,
        process_group: Any = None,
    ) -> None:
        super().__init__(model, start=start, buffers=buffers, check_finite=check_finite, process_group=process_group)
        self.interval = check_count("interval", interval)
        self.decay = check_decay(decay)
        self._track = ExponentialTrack(self._weights, self.interval, self.start, self.decay)

    @property
    def ready(self) -> bool:
        return bool(self._track.steps)

    def _tracks(self) -> list[ExponentialTrack]:
        return [self._track]

    @property
    def _shown(self) -> ExponentialTrack:
        return self._track

    def _average(self, block: Block) -> Tensor:
        return self._track.average(block)

    def _hyperparameters(self) -> dict[str, Any]:
        return {"decay": self.decay, "interval": self.interval}

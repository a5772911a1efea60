"""EMA: an exponential average of snapshots."""

from typing import Any

import torch
from torch import Tensor, nn

from weight_averaging.collection import check_decay
from weight_averaging.torch.averager import Averager
from weight_averaging.torch.weights import Block, is_finite


class EMA(Averager):
    """Exponential average of the weights (Algorithm 2 of Ajroldi et al., ICML 2025, arXiv 2502.06761).

    Starts at the first snapshot, so that nothing of the random initialisation is in it, then after every `interval`
    updates

        ema <- decay * ema + (1 - decay) * theta_t.

    Memory: 4 bytes per parameter, and one copy of the model from the first evaluation on.

    Args:
        decay: weight of the past, in [0, 1). `weight_averaging.collection.decay_from_window` gives the decay that
            matches a LAWA window.
        model, interval, start, buffers, device, check_finite: see `Averager`.

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
        device: torch.device | str | None = None,
        check_finite: bool = True,
    ) -> None:
        super().__init__(
            model, interval=interval, start=start, buffers=buffers, device=device, check_finite=check_finite
        )
        self.decay = check_decay(decay)
        self._ema: Tensor | None = None
        self._last_step = 0

    @property
    def ready(self) -> bool:
        return self._ema is not None

    @property
    def snapshot_steps(self) -> list[int]:
        return [self._last_step] if self.ready else []

    def _collect(self, step: int) -> bool:
        if self._ema is None:
            self._ema = self._weights.snapshot(None, self.check_finite)
            if self._ema is None:
                return False
        elif not self.check_finite:
            self._blend_unchecked(self._ema)
        elif not self._blend(self._ema):
            return False
        self._last_step = step
        return True

    def _blend(self, ema: Tensor) -> bool:
        """One pass that checks each block and blends it in while it is in the cache. False: taken back."""
        # Taking back divides by the decay: exact to about 2 ** -24 / decay. Where that is poor, check first.
        if self.decay < 0.5 and not all(is_finite(values) for _, values in self._weights.blocks()):
            return False
        weight = 1.0 - self.decay
        for block, values in self._weights.blocks():
            if not is_finite(values):
                self._take_back(ema, block.start)
                return False
            ema[block.range].lerp_(values, weight)
        return True

    def _blend_unchecked(self, ema: Tensor) -> None:
        tensors = self._weights.tensors()
        if all(t.dtype == torch.float32 and t.device == ema.device for t in tensors):
            torch._foreach_lerp_(self._weights.views(ema), tensors, 1.0 - self.decay)
            return
        for block, values in self._weights.blocks():
            ema[block.range].lerp_(values, 1.0 - self.decay)

    def _take_back(self, ema: Tensor, end: int) -> None:
        """Undo the blend on [0, end): ema = (ema - (1 - decay) theta) / decay, in float64."""
        for block, values in self._weights.blocks():
            if block.start >= end:
                return
            past = ema[block.range].double().sub_(values.double(), alpha=1.0 - self.decay).div_(self.decay)
            ema[block.range].copy_(past)

    def _average(self, block: Block) -> Tensor:
        assert self._ema is not None
        return self._ema[block.range]

    def _hyperparameters(self) -> dict[str, Any]:
        return {"decay": self.decay}

    def _vectors(self) -> list[Tensor]:
        return [] if self._ema is None else [self._ema]

    def _set_vectors(self, vectors: list[Tensor], steps: list[int]) -> None:
        self._ema = vectors[0].detach().to(self._weights.device, torch.float32, copy=True) if vectors else None
        self._last_step = steps[0] if steps else 0

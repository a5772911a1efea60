"""LAWA: the mean of the latest L snapshots."""

from collections import deque
from typing import Any

import torch
from torch import Tensor, nn

from weight_averaging.collection import check_count
from weight_averaging.torch.averager import Averager
from weight_averaging.torch.weights import Block


class LAWA(Averager):
    """Latest weight averaging (Kaddour 2022; Algorithm 1 of Ajroldi et al., ICML 2025, arXiv 2502.06761).

    After every `interval` updates the weights join a queue that holds the latest `window` snapshots; the average is

        (1 / L) * sum of theta_{t - i nu},  i = 0, ..., L - 1,

    with nu the interval and t the last update that was a multiple of it. Memory: (window + 1) x 4 bytes per
    parameter for the snapshots (a new one replaces the oldest only once it is known to be finite), and one copy of
    the model from the first evaluation on.

    Args:
        window: snapshots in the average, L >= 1.
        allow_partial: be ready from the first snapshot on, with the mean over those held. By default the average is
            ready when `window` snapshots are.
        model, interval, start, buffers, device, check_finite: see `Averager`.

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
        buffers: str = "average",
        device: torch.device | str | None = None,
        check_finite: bool = True,
    ) -> None:
        super().__init__(
            model, interval=interval, start=start, buffers=buffers, device=device, check_finite=check_finite
        )
        self.window = check_count("window", window)
        self.allow_partial = allow_partial
        self._snapshots: deque[tuple[int, Tensor]] = deque()  # (step, flat vector), oldest first
        self._spare: Tensor | None = None

    @property
    def ready(self) -> bool:
        return len(self._snapshots) >= (1 if self.allow_partial else self.window)

    @property
    def snapshot_steps(self) -> list[int]:
        return [step for step, _ in self._snapshots]

    def _collect(self, step: int) -> bool:
        snapshot = self._weights.snapshot(self._spare, self.check_finite)
        if snapshot is None:
            return False
        self._snapshots.append((step, snapshot))
        self._spare = self._snapshots.popleft()[1] if len(self._snapshots) > self.window else None
        return True

    def _average(self, block: Block) -> Tensor:
        mean = self._weights.staging()[: block.stop - block.start]
        vectors = [vector[block.range] for _, vector in self._snapshots]
        if len(vectors) == 1:
            return vectors[0]
        torch.add(vectors[0], vectors[1], out=mean)
        for vector in vectors[2:]:
            mean.add_(vector)
        return mean.div_(len(vectors))

    def _hyperparameters(self) -> dict[str, Any]:
        return {"window": self.window, "allow_partial": self.allow_partial}

    def _vectors(self) -> list[Tensor]:
        return [vector for _, vector in self._snapshots]

    def _set_vectors(self, vectors: list[Tensor], steps: list[int]) -> None:
        copies = [vector.detach().to(self._weights.device, torch.float32, copy=True) for vector in vectors]
        self._snapshots = deque(zip(steps, copies, strict=True))

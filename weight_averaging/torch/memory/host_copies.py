"""Copies from an accelerator to host memory that go on beside training.

A copy reads from a buffer that belongs to it, filled by the training stream, so that the optimizer may change the
weights at once. Three orders must hold, and `HostCopies` sees to them:

1. the copy begins when the buffer has been filled;
2. the buffer is not overwritten before the copy has ended;
3. nobody reads the copy before it has ended.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor


class Streams(Protocol):
    """What ordering copies needs of a device. Events are opaque."""

    def copy(self, into: Tensor, source: Tensor) -> Any:
        """Begin a copy, beside the training stream but after all that is in it now. Returns the event of its end."""

    def hold_training(self, event: Any) -> None:
        """What comes into the training stream from now on runs after `event`. Does not wait."""

    def wait(self, event: Any) -> None:
        """Return when `event` has happened."""


class NoStreams:
    """An accelerator without a stream beside training, as far as this library knows: copies are complete on return."""

    def copy(self, into: Tensor, source: Tensor) -> None:
        into.copy_(source)

    def hold_training(self, event: None) -> None:
        pass

    def wait(self, event: None) -> None:
        pass


class CudaStreams:
    """CUDA: the copies have a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = torch.cuda.Stream(device)

    def copy(self, into: Tensor, source: Tensor) -> torch.cuda.Event:
        self._side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._side):
            into.copy_(source, non_blocking=True)
            event = torch.cuda.Event()
            event.record(self._side)
        return event

    def hold_training(self, event: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self._device).wait_event(event)

    def wait(self, event: torch.cuda.Event) -> None:
        event.synchronize()

    def __reduce__(self) -> tuple[Any, ...]:
        return CudaStreams, (self._device,)


class HostCopies:
    """Copies of one buffer, whichever windows they go to: who shares the buffer must share this."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._last: Any = None
        self._step: int | None = None  # of the snapshot in the buffer
        self._buffer: Tensor

    def begin(self, step: int, fill: Callable[[], Tensor], into: Tensor) -> None:
        """Begin to copy the buffer, which `fill` fills in the training stream and returns.

        Several copies of the snapshot of one `step` do not wait for each other.
        """
        if self._last is not None and step != self._step:
            self._streams.hold_training(self._last)
        if step != self._step:
            self._step, self._buffer = step, fill()
        self._last = self._streams.copy(into, self._buffer)

    def finish(self) -> None:
        """Return when no copy is under way. The buffer may then be used otherwise."""
        if self._last is not None:
            self._streams.wait(self._last)
        self._last = self._step = None

    def __getstate__(self) -> dict[str, Any]:
        self.finish()
        return {"_streams": self._streams, "_last": None, "_step": None}

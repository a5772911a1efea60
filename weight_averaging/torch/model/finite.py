"""Whether a snapshot was finite, asked when it is taken and answered later.

A device that runs behind the processor answers when it comes to it. To wait would let it run dry, at every snapshot; so
the snapshot is taken in as if it were good, in a way that can be undone, and the answer is read before the next one is
taken or anything is made of this one. By then it has been there for long.
"""

import torch
from torch import Tensor


def defers(device: torch.device) -> bool:
    """Whether what a device computes is not there when the call returns."""
    return device.type != "cpu"


class Verdict:
    """The answer that a 0-d boolean tensor will hold."""

    def __init__(self, good: Tensor) -> None:
        self._answer, self._event = good, None
        if good.device.type == "cuda":  # else the answer is fetched when it is asked for
            self._answer = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(good, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(good.device))

    def is_good(self) -> bool:
        """Waits for the device, if it is not that far yet."""
        if self._event is not None:
            self._event.synchronize()
        return bool(self._answer)

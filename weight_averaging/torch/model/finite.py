"""Whether a snapshot was finite, asked when it is taken and answered later.

A device that runs behind the processor answers when it comes to it. To wait would let it run dry, at every snapshot. So
the snapshot is taken in as if it were good, in a way that can be undone. The answer is read before the next one is
taken or anything is made of this one. By then it has been there for long.
"""

import math

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


def squares(parts: list[Tensor]) -> list[Tensor]:
    """What is finite if a flat tensor is: of each its square sum or, on an accelerator, a norm. Each is read once.

    The converse holds of CUDA's norm, the largest absolute value. The others overflow sooner: the sum of squares of
    2^21 float32 elements of 1.3e16, of 2^30 of 5.6e14. Where they are not finite, `all_finite` tells.
    """
    if not parts or parts[0].device.type == "cpu":
        return [torch.dot(part, part) for part in parts]
    return list(torch._foreach_norm(parts, math.inf if parts[0].device.type == "cuda" else 2))  # one launch for many


def finite(sums: list[Tensor]) -> bool:
    """Whether all of `squares` are finite, and so all that went into them. One wait for the device."""
    if len(sums) == 1:
        return math.isfinite(sums[0].item())
    return not sums or bool(finite_later(sums))


def finite_later(sums: list[Tensor]) -> Tensor:
    """The same of one sum or more as a 0-d boolean tensor on their device. No wait."""
    return torch.isfinite(torch.stack(sums)).all()


def is_finite(values: Tensor) -> bool:
    """Whether all of a flat tensor is finite."""
    return all_finite([values])


def all_finite(parts: list[Tensor]) -> bool:
    """Whether all of some flat tensors are finite; only where a square sum is not, each element is looked at."""
    return finite(squares(parts)) or all(bool(torch.isfinite(part).all()) for part in parts)

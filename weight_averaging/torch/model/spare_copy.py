"""A second copy of a model's weights: the raw ones while the average is in the model, or one that travels elsewhere."""

from typing import Any

import torch
from torch import Tensor

from weight_averaging.torch.model.tensors import writing
from weight_averaging.torch.model.weights import LiveWeights


class SpareCopy:
    """Memory for a copy of the tensors of `weights`, made when it is needed and used again.

    Attributes:
        is_kept: whether it is needed during training too, since snapshots to other memory start from it.
    """

    def __init__(self, weights: LiveWeights) -> None:
        self.weights = weights
        self.is_kept = False
        self._tensors: list[Tensor] = []
        self._vector: Tensor | None = None  # of which they are views
        self._apart: Tensor | None = None
        self._version = weights.version
        self._written = False  # since the memory was taken

    def keep(self) -> list[Tensor]:
        """Copy the live tensors aside."""
        self.reserve()
        if self._tensors:
            torch._foreach_copy_(self._tensors, self.weights.tensors())
        self._written = True
        return self._tensors

    def flat(self) -> Tensor:
        """A flat copy on the model's device, of one type; in the memory of `keep` where all tensors are of it."""
        if self.weights.is_single:
            self.keep()
            assert self._vector is not None
            return self._vector
        self._follow()
        if self._apart is None:
            self._apart = torch.empty(self.weights.numel, dtype=self.weights.dtype, device=self.weights.device)
        if self.weights.entries:
            torch._foreach_copy_(self.weights.views(self._apart), self.weights.sources())
        return self._apart

    def reserve(self) -> None:
        """Take the memory of `keep` now, so that a lack of it shows before any training."""
        self._follow()
        if self._tensors:
            return
        weights, self._written = self.weights, False
        if weights.is_single:
            self._vector = torch.empty(weights.numel, dtype=weights.dtype, device=weights.device)
            self._tensors = weights.views(self._vector)
        else:
            self._tensors = [torch.empty_like(t) for t in weights.tensors()]

    def release(self) -> None:
        """Give the memory back where it is scarce and not needed during training."""
        if self.weights.device.type != "cpu" and not (self.is_kept and self.weights.is_single):
            self._tensors, self._vector = [], None

    def restore(self, raw: list[Tensor]) -> None:
        """Copy tensors back into the model.

        Raises:
            RuntimeError: one of the model's tensors is gone or has another shape; nothing is changed.
        """
        weights = self.weights
        missing = [entry.name for entry in weights.entries if entry.tensor() is None]
        tensors = [] if missing else weights.tensors()
        changed = [n for n, t, r in zip(weights.names, tensors, raw) if t.shape != r.shape]
        if missing or changed:
            was = f"{missing[0]} is gone" if missing else f"{changed[0]} has another shape"
            raise RuntimeError(
                f"the model was changed while the average was in it: {was}, so its raw weights have no place. Undo "
                'that, or take them from state_dict()["raw"]'
            )
        if tensors:
            with writing(tensors):
                torch._foreach_copy_(tensors, raw)

    def rounded(self, raw: list[Tensor]) -> str:
        """Which of the model's tensors has a type now that cannot hold what was kept of it, in words; or nothing."""
        for name, tensor, kept in zip(self.weights.names, self.weights.tensors(), raw):
            if tensor.dtype != kept.dtype and tensor.dtype.itemsize <= kept.dtype.itemsize:
                return f"{name} was made {tensor.dtype} of {kept.dtype}"
        return ""

    @property
    def unused_bytes(self) -> int:
        """Bytes of host memory that nobody has written to yet: see `placement.promise`."""
        on_host = self.weights.device.type == "cpu" and not self._written
        return sum(t.numel() * t.element_size() for t in self._tensors) if on_host else 0

    @property
    def nbytes(self) -> int:
        """Bytes that it takes now."""
        apart = [] if self._apart is None else [self._apart]
        return sum(t.numel() * t.element_size() for t in [*self._tensors, *apart])

    def _follow(self) -> None:
        """Forget memory that was for the model as it was."""
        if self._version != self.weights.version:
            self._version = self.weights.version
            self._tensors, self._vector, self._apart = [], None, None

    def __getstate__(self) -> dict[str, Any]:
        """Without memory that comes back by itself, and whose views would come back as separate tensors."""
        return {**self.__dict__, "_tensors": [], "_vector": None, "_apart": None}

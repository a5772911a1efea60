"""What LAWA and EMA share: collecting snapshots, swapping the average in and out of the model, saving and loading."""

import abc
import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from weight_averaging.collection import check_count, is_due
from weight_averaging.torch.batch_norm import batch_norms
from weight_averaging.torch.weights import Block, LiveWeights, clean_names

logger = logging.getLogger("weight_averaging")

BUFFERS = ("average", "latest", "recompute")


class Averager(abc.ABC):
    """An average of a model's weights along training, kept in float32 and apart from the model.

    The model trains on its raw weights. `swap_in` puts the average into it for evaluation and keeps the raw weights
    aside; `swap_out` puts those back, bit for bit. Use `averaged()` for both.

    Args:
        model: the module in training, also when wrapped by DDP or torch.compile.
        interval: updates between snapshots, nu >= 1.
        start: the first update whose weights may be collected.
        buffers: `"average"` treats floating-point buffers (batch-norm statistics) like parameters, `"latest"` leaves
            them as training has them, `"recompute"` asks for new batch-norm statistics at every swap, by the function
            given to `swap_in`. Integer buffers always stay as they are.
        device: where snapshots and averages live; default: where the model's first parameter is. `"cpu"` keeps them
            in host memory.
        check_finite: refuse weights with a NaN or an infinity, for one more read of the weights at each snapshot. Turn
            it off where that read matters (an interval of 1) and training stops at the first NaN anyway.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        interval: int,
        start: int = 1,
        buffers: str = "average",
        device: torch.device | str | None = None,
        check_finite: bool = True,
    ) -> None:
        if buffers not in BUFFERS:
            raise ValueError(f"buffers must be one of {', '.join(BUFFERS)}, not {buffers!r}")
        self.interval = check_count("interval", interval)
        self.start = check_count("start", start)
        self.buffers = buffers
        self.check_finite = check_finite
        self.step = 0  # the last update seen
        self._weights = LiveWeights(model, buffers == "average", torch.device(device) if device is not None else None)
        self._model = model
        self._raw: list[Tensor] | None = None  # memory for the raw weights, reused from one swap to the next
        self._raw_statistics: list[Tensor] = []  # of batch norm, while recomputed ones are in the model
        self._swapped = False
        self._said_not_ready = False
        self._refusing = False  # whether the last snapshot that was due was not finite

    @property
    @abc.abstractmethod
    def ready(self) -> bool:
        """Whether there is an average to swap in."""

    @abc.abstractmethod
    def _collect(self, step: int) -> bool:
        """Take the live weights in. False, with nothing changed, if they are to be finite and are not."""

    @abc.abstractmethod
    def _average(self, block: Block) -> Tensor:
        """The average over a block, flat and float32."""

    @abc.abstractmethod
    def _hyperparameters(self) -> dict[str, Any]:
        """What must agree between a saved state and this averager."""

    @abc.abstractmethod
    def _vectors(self) -> list[Tensor]:
        """The flat vectors that make up the state, to be saved."""

    @abc.abstractmethod
    def _set_vectors(self, vectors: list[Tensor], steps: list[int]) -> None:
        """Take over saved vectors, owned by the caller until copied."""

    @property
    @abc.abstractmethod
    def snapshot_steps(self) -> list[int]:
        """The updates whose snapshots the state holds (LAWA), or the last one taken in (EMA); oldest first."""

    @property
    def swapped(self) -> bool:
        """Whether the model holds the average now."""
        return self._swapped

    @torch.no_grad()
    def update(self, step: int) -> bool:
        """Tell that `step` optimizer updates are complete; collects a snapshot when one is due.

        Weights with a NaN or an infinity are not collected (`check_finite`): a warning names the first such step and
        the average stays as it is.

        Returns:
            Whether a snapshot was collected.
        Raises:
            RuntimeError: the average is swapped in, so the model's weights are not those of training.
            ValueError: `step` is not larger than at the last call.
        """
        if self._swapped:
            raise RuntimeError(f"update({step}) while the average is in the model: call swap_out() before training on")
        if step <= self.step:
            last = f"update({step}) after update({self.step})"
            raise ValueError(f"{last}: pass the number of completed updates, 1, 2, ...")
        self.step = step
        if not is_due(step, self.interval, self.start):
            return False
        collected = self._collect(step)
        if not collected and not self._refusing:  # once, not at every snapshot of a run that is lost
            held = self.snapshot_steps
            stays = f"the average stays that of step {held[-1]}" if held else "there is no average yet"
            logger.warning("step %d: weights are not finite and are not collected; %s", step, stays)
        self._refusing = not collected
        return collected

    @torch.no_grad()
    def swap_in(self, recompute: Callable[[], object] | None = None) -> bool:
        """Put the average into the model. Does nothing if it is there already, or if none is ready.

        Args:
            recompute: called with the average in the model, to bring batch-norm statistics up to date, for instance by
                `weight_averaging.torch.recompute_batch_norm`. Needed under `buffers="recompute"`, unused otherwise.
                Random numbers that it draws are not missed by training.
        Returns:
            Whether the model holds the average now.
        Raises:
            TypeError: `buffers="recompute"` without `recompute`.
        """
        if self.buffers == "recompute" and recompute is None:
            raise TypeError('buffers="recompute" needs a function to do it: swap_in(recompute=...)')
        if self._swapped:
            return True
        if not self.ready:
            if not self._said_not_ready:
                logger.info("%s is not ready at step %d: the raw weights are evaluated", type(self).__name__, self.step)
                self._said_not_ready = True
            return False
        tensors = self._weights.tensors()
        if self._raw is None:
            self._raw = [torch.empty_like(t) for t in tensors]
        torch._foreach_copy_(self._raw, tensors)
        self._weights.write(self._average)
        self._swapped = True
        if self.buffers == "recompute":
            assert recompute is not None
            self._raw_statistics = [buffer.clone() for buffer in self._statistics()]
            with torch.random.fork_rng():
                recompute()
        return True

    @torch.no_grad()
    def swap_out(self) -> bool:
        """Put the raw weights back into the model. Does nothing if they are there.

        Returns:
            Whether anything was swapped.
        """
        if not self._swapped:
            return False
        assert self._raw is not None
        torch._foreach_copy_(self._weights.tensors(), self._raw)
        self._restore_statistics(self._raw_statistics)
        self._swapped = False
        return True

    def _statistics(self) -> list[Tensor]:
        return [buffer for layer in batch_norms(self._model) for buffer in layer.buffers(recurse=False)]

    def _restore_statistics(self, raw: list[Tensor]) -> None:
        for buffer, value in zip(self._statistics() if raw else [], raw, strict=True):
            buffer.copy_(value)
        self._raw_statistics = []

    @contextlib.contextmanager
    def averaged(self, recompute: Callable[[], object] | None = None) -> Iterator[bool]:
        """The average in the model for the length of a `with` block, which receives whether there was one to use."""
        was_swapped = self._swapped
        try:
            yield self.swap_in(recompute)
        finally:
            if not was_swapped:
                self.swap_out()

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and strings: loads under `torch.load(weights_only=True)`.

        The tensors are not copied; save them before training goes on. Taken while swapped, the state also holds the
        raw weights, since a model saved at that moment does not.
        """
        return {
            "averager": type(self).__name__,
            **self._hyperparameters(),
            "interval": self.interval,
            "start": self.start,
            "buffers": self.buffers,
            "step": self.step,
            "names": list(self._weights.names),
            "shapes": [list(shape) for shape in self._weights.shapes],
            "snapshot_steps": list(self.snapshot_steps),
            "vectors": self._vectors(),
            "raw": list(self._raw) if self._swapped and self._raw is not None else None,
            "raw_statistics": list(self._raw_statistics),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved state, wherever `map_location` put its tensors.

        If it was saved while swapped, the raw weights go back into the model, which is then ready for training.

        Raises:
            ValueError: it is the state of another averager, other settings or another model. Nothing is changed.
        """
        mine = self.state_dict()
        settings = [key for key in mine if key not in _CONTENTS]
        missing = [key for key in mine if key not in state]
        if missing:
            raise ValueError(f"not the state of an averager: it has no {', '.join(missing)}")
        for key in settings:
            if state[key] != mine[key]:
                raise ValueError(
                    f"the saved {state['averager']} has {key}={state[key]!r}, this {mine['averager']} {mine[key]!r}"
                )
        order = self._match(state["names"], [tuple(shape) for shape in state["shapes"]])
        numels = [torch.Size(shape).numel() for shape in state["shapes"]]
        for vector in state["vectors"]:
            if vector.numel() != sum(numels):
                raise ValueError(f"a saved vector has {vector.numel()} elements, its shapes {sum(numels)}")
        vectors = state["vectors"]
        if order != sorted(order):
            vectors = [_reorder(vector, numels, order) for vector in vectors]
        self._set_vectors(vectors, list(state["snapshot_steps"]))
        self.step = state["step"]
        if state["raw"] is not None:
            raw = [state["raw"][index] for index in order]
            torch._foreach_copy_(self._weights.tensors(), raw)
        self._restore_statistics(state["raw_statistics"])
        self._swapped = False

    def _match(self, names: list[str], shapes: list[tuple[int, ...]]) -> list[int]:
        """For each of this model's tensors its place in the saved state; a ValueError where they do not all match."""
        place = {name: index for index, name in enumerate(clean_names(names))}
        mine = self._weights.names
        lacking = [name for name in mine if name not in place]
        extra = set(place) - set(mine)
        if lacking or extra:
            raise ValueError(
                f"the saved state is of another model: {len(lacking)} of {len(mine)} tensors are not in it "
                f"({_some(lacking)}), {len(extra)} of its own are not in this model ({_some(sorted(extra))})"
            )
        for name, shape in zip(mine, self._weights.shapes, strict=True):
            if shapes[place[name]] != shape:
                raise ValueError(f"the saved {name} has shape {shapes[place[name]]}, this model's {shape}")
        return [place[name] for name in mine]


_CONTENTS = {"step", "names", "shapes", "snapshot_steps", "vectors", "raw", "raw_statistics"}


def _reorder(vector: Tensor, numels: list[int], order: list[int]) -> Tensor:
    pieces = vector.split(numels)
    return torch.cat([pieces[index] for index in order])


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "none"

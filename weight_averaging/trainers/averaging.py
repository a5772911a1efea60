"""What the callbacks of all trainers share: the averager, and whose average it has."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from weight_averaging.torch import Averager
from weight_averaging.trainers.known_weights import KnownWeights
from weight_averaging.trainers.modes import training_mode

logger = logging.getLogger("weight_averaging")


class Averaging:
    """An averager of a model in a trainer's hands.

    An average belongs to the run whose weights the model has. During training those are the run's own by definition;
    what training left is remembered, and looked for before the average is used.

    Attributes:
        averager: the averager; None before training.
    """

    def __init__(self, make: Callable[[Any], Averager], settings: str) -> None:
        self._make, self._settings = make, settings
        self.averager: Averager | None = None
        self._model: nn.Module | None = None  # the one that the averager is of
        self._training = False
        self._left: KnownWeights | None = None  # the weights that the average belongs to, outside of training

    def _of(self, model: nn.Module) -> Averager:
        """The averager of this model."""
        if self.averager is None or self._model is not model:
            self._forget()
            self.averager, self._model = self._make(model), model
            if self.averager.buffers == "recompute":
                raise ValueError(
                    'WeightAveraging swaps without a function that recomputes statistics: use buffers="average" or '
                    '"latest"'
                )
        return self.averager

    def _forget(self) -> None:
        if self.averager is not None:
            self.averager.swap_out()
        self.averager = self._model = self._left = None

    def _leave(self) -> None:
        """Remember the weights: those that the average belongs to."""
        if self.averager is not None and not self.averager.swapped:
            self._left = KnownWeights(self.averager)

    def _interrupted(self) -> None:
        """Remember the weights that an error in training leaves."""
        if self._training:
            with contextlib.suppress(RuntimeError):  # of a device that has failed, which is being told already
                self._leave()
        self._training = False

    def _other_weights(self) -> str:
        """A parameter that is not what the run of the average left, by its name; empty if there is none."""
        averager, model = self.averager, self._model
        if averager is None or model is None or averager.swapped or self._training or self._left is None:
            return ""
        with training_mode(model, then_eval=True):
            return self._left.changed(averager)

    def _is_own(self) -> bool:
        if other := self._other_weights():
            logger.warning("%s is not what training left: the weights are used as they are, not averaged", other)
        return not other

    def _begin_anew_if_other(self, model: nn.Module) -> None:
        """Drop the average of an earlier run if this one begins with other weights of the same model."""
        if self._model is model and (other := self._other_weights()):
            logger.warning("%s is not what training left: the average begins anew", other)
            self._forget()

    @contextlib.contextmanager
    def averaged(self) -> Iterator[bool]:
        """The average in the model for the length of a `with` block: see `Averager.averaged`.

        After training the block receives False, and a warning says so, if the model has other weights by then.

        Raises:
            RuntimeError: there is no averager yet.
        """
        if self.averager is None:
            raise RuntimeError("WeightAveraging has no averager before training begins")
        if not self._is_own():
            yield False
            return
        with self.averager.averaged() as ready:
            yield ready

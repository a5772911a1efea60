"""What the callbacks of all trainers share: the averager, and whose average it has."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from weight_averaging.averages import FollowsRate
from weight_averaging.torch import Averager
from weight_averaging.torch.model.modes import training_mode
from weight_averaging.trainers.known_weights import KnownWeights
from weight_averaging.trainers.steps import rate_of

EVALUATE = ("average", "both", "apart")
logger = logging.getLogger("weight_averaging")


class Averaging:
    """An averager of a model in a trainer's hands.

    An average belongs to the run whose weights the model has. During training those are the run's own by definition;
    what training left is remembered, and looked for before the average is used.

    Args:
        make, settings, evaluate, name, forward, batches: see the callbacks.

    Attributes:
        averager: the averager; None before training.
        name: as it was given.
        passing: the name of the pass under way beside the trainer's own: `"raw"`, or this average's; else empty.
    """

    def __init__(
        self,
        make: Callable[[Any], Averager],
        settings: str,
        evaluate: str,
        name: str,
        forward: Callable[[Any, Any], object] | None,
        batches: int,
    ) -> None:
        if isinstance(make, Averager) or not callable(make):
            raise TypeError(
                "WeightAveraging takes a function that makes the averager, as lambda model: "
                f"{type(make).__name__}(model, ...), not {'an averager' if isinstance(make, Averager) else repr(make)}"
            )
        if evaluate not in EVALUATE:
            raise ValueError(f"evaluate must be one of {', '.join(EVALUATE)}, not {evaluate!r}")
        if name == "raw" or (name and not name.isidentifier()):
            raise ValueError(
                f"name must be like that of a variable, and not raw: got {name!r}; it is part of the names of metrics"
            )
        if evaluate == "apart" and not name:
            raise ValueError('evaluate="apart" needs a name=, with which the names of its metrics begin')
        self._make, self._settings, self._evaluate = make, settings, evaluate
        self._forward, self._batches = forward, batches
        self.name, self.passing = name, ""
        self.averager: Averager | None = None
        self._model: nn.Module | None = None  # the one that the averager is of
        self._training = False
        self._left: KnownWeights | None = None  # the weights that the average belongs to, outside of training

    @property
    def _pass(self) -> str:
        """With what the metrics of a pass beside the trainer's own begin; empty if there is none."""
        return {"average": "", "both": "raw", "apart": self.name}[self._evaluate]

    @property
    def _shows(self) -> bool:
        """Whether the average is what the pass under way is to see."""
        return self.passing == self.name if self.passing else self._evaluate != "apart"

    @contextlib.contextmanager
    def _passes(self) -> Iterator[None]:
        """Around a pass beside the trainer's own."""
        self.passing = self._pass
        try:
            yield
        finally:
            self.passing = ""

    def _of(self, model: nn.Module) -> Averager:
        """The averager of this model."""
        if self.averager is None or self._model is not model:
            self._forget()
            self.averager, self._model = self._make(model), model
            if self.averager.buffers == "recompute" and self._forward is None:
                raise ValueError(
                    'buffers="recompute" needs WeightAveraging(..., forward=lambda model, batch: ...), which runs the '
                    "model on a batch of training"
                )
        return self.averager

    def _updated(self, optimizers: Iterable[Any]) -> None:
        """One update more, by these optimizers."""
        assert self.averager is not None
        follows = any(isinstance(average, FollowsRate) for average in self.averager.averages)
        # Only where it is needed: a rate that is a tensor on a device would be waited for.
        told = {"learning_rate": rate_of(optimizers)} if follows else {}
        self.averager.update(self.averager.step + 1, **told)

    def _refuse_overlap(self, everyone: Iterable[Any]) -> None:
        """A ValueError if another callback shows its average of the same weights in the same pass."""
        for other in everyone:
            if not isinstance(other, Averaging) or other is self or not (self._shows and other._shows):
                continue
            if self.averager is None or other.averager is None:
                continue
            mine = self.averager._weights.index_by_id()
            if not mine.keys().isdisjoint(other.averager._weights.index_by_id()):
                raise ValueError(
                    "two averages of the same weights cannot be evaluated in one pass: give one of them a name= and "
                    'evaluate="apart"'
                )

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
        with self.averager.averaged(self._recompute) as ready:
            yield ready

    def _recompute(self) -> None:
        """Bring batch-norm statistics up to date on batches of training."""
        raise NotImplementedError

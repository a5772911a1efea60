"""Weight averaging in Hugging Face's Trainer (the extra `transformers`). How to use it: docs/trainers.md."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from weight_averaging.atomic_file import replacing
from weight_averaging.torch import Averager
from weight_averaging.trainers.modes import training_mode

logger = logging.getLogger("weight_averaging")

STATE = "weight_averaging"  # beside a checkpoint's other files: .pt, or a folder of shards


class WeightAveraging(TrainerCallback):
    """Train on the raw weights, evaluate and predict on their average.

        averaging = WeightAveraging(lambda model: LAWA(model, interval=64, window=20)).attach(trainer)
        trainer.train()
        averaging.save_pretrained("averaged")

    A callback alone does not do, since the Trainer has no event before an evaluation and tells callbacks neither the
    folder that it resumes from: `attach` adds this one and puts `averaged()` around the Trainer's `evaluation_loop`.

    An update is an optimizer step: one in `gradient_accumulation_steps` batches, none where GradScaler skipped it (the
    Trainer's `global_step` counts those; fused optimizers, the default, skip on the device where nobody is told). A
    `checkpoint-N` has the raw weights and, beside them, the averager's state; `train(resume_from_checkpoint=...)` goes
    on bit for bit. With `load_best_model_at_end` the best checkpoint is the one whose average was best, and after
    training both the raw weights and the average are those of it.

    Args:
        make: called with the model at the beginning of training, where training has it; returns any averager of
            `weight_averaging.torch`.

    Attributes:
        averager: the averager; None before training.
    """

    def __init__(self, make: Callable[[nn.Module], Averager]) -> None:
        self._make = make
        self.averager: Averager | None = None
        self._model: nn.Module | None = None  # the one that the averager is of
        self._trainer: Trainer | None = None
        self._resumed: Path | None = None  # the folder that this run of training goes on from

    def attach(self, trainer: Trainer) -> "WeightAveraging":
        """Let a Trainer, or one of a class derived from it, average; before `train`. Returns this callback.

        Raises:
            RuntimeError: it is attached to a Trainer already.
        """
        if self._trainer is not None:
            raise RuntimeError("this WeightAveraging is attached to a Trainer already: make another one")
        self._trainer = trainer
        trainer.add_callback(self)
        for name in ("evaluation_loop", "prediction_loop"):  # the latter in releases before 5
            if hasattr(trainer, name):
                setattr(trainer, name, self._around(getattr(trainer, name)))
        setattr(trainer, "train", self._noting(trainer.train))  # noqa: B010
        return self

    def _around(self, loop: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(loop)
        def averaged(*args: Any, **kwargs: Any) -> Any:
            assert self._trainer is not None
            if self.averager is None or self._model is None or self._model is not self._trainer.model:
                logger.warning("WeightAveraging has no average of this model: its weights are used as they are")
                return loop(*args, **kwargs)
            if not self.averager.step:  # eval_on_start
                return loop(*args, **kwargs)
            model = self._model
            optimizer: Any = self._trainer.optimizer
            if callable(getattr(optimizer, "eval", None)):  # schedule-free: the loop would do so on the average
                optimizer.eval()
            evaluating = contextlib.ExitStack()
            with training_mode(model, then_eval=True):
                evaluating.enter_context(self.averaged())
            try:
                return loop(*args, **kwargs)
            finally:
                with training_mode(model, then_eval=False):
                    evaluating.close()

        return averaged

    def _noting(self, train: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(train)
        def noted(resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
            assert self._trainer is not None
            folder: Any = resume_from_checkpoint or None
            if folder is True:
                folder = get_last_checkpoint(self._trainer.args.output_dir)
            self._resumed = Path(folder) if folder else None
            return train(resume_from_checkpoint, *args, **kwargs)

        return noted

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the averager, where the weights are now, or go on with that of the checkpoint."""
        if self._trainer is None:
            raise RuntimeError("WeightAveraging(...).attach(trainer), instead of callbacks=[WeightAveraging(...)]")
        model = kwargs["model"]
        if self.averager is None or self._model is not model:
            self.averager, self._model = self._make(model), model
            if self.averager.buffers == "recompute":
                raise ValueError(
                    'WeightAveraging swaps without a function that recomputes statistics: use buffers="average" or '
                    '"latest"'
                )
        if self._resumed is not None and not self._load(self._resumed):
            logger.warning("%s has no state of WeightAveraging: the average begins anew", self._resumed)
            self.averager = self._make(model)
        if not self.averager.step:
            self.averager.step = state.global_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """One update more, if the step was not skipped."""
        assert self._trainer is not None
        assert self.averager is not None
        if not self._trainer.accelerator.optimizer_step_was_skipped:
            self.averager.update(self.averager.step + 1)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put the averager's state into the checkpoint that was just written."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        assert self.averager is not None
        saved = self.averager.state_dict()
        if not folder.is_dir():
            logger.warning("%s is not there: the state of WeightAveraging is not saved", folder)
        elif _has_shards(saved):
            dcp.save({"averager": saved}, checkpoint_id=folder / STATE)
        elif args.should_save:
            with replacing(folder / f"{STATE}.pt") as stream:
                torch.save(saved, stream)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the average of the best checkpoint, whose weights the Trainer has just loaded, if it has."""
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            folder = Path(state.best_model_checkpoint)
            if not self._load(folder):
                logger.warning("%s has no state of WeightAveraging: the average stays that of the last update", folder)

    def _load(self, folder: Path) -> bool:
        """Whether the folder has a state; it is loaded then."""
        assert self.averager is not None
        if (folder / STATE).is_dir():
            state = {"averager": self.averager.state_dict()}
            dcp.load(state, checkpoint_id=folder / STATE)
            self.averager.load_state_dict(state["averager"])
            return True
        if (folder / f"{STATE}.pt").is_file():
            self.averager.load_state_dict(torch.load(folder / f"{STATE}.pt", map_location="cpu", weights_only=True))
            return True
        return False

    @contextlib.contextmanager
    def averaged(self) -> Iterator[bool]:
        """The average in the model for the length of a `with` block: see `Averager.averaged`.

        Raises:
            RuntimeError: there is no averager yet.
        """
        if self.averager is None:
            raise RuntimeError("WeightAveraging has no averager before training begins")
        with self.averager.averaged() as ready:
            yield ready

    def save_pretrained(self, folder: str | Path) -> None:
        """Save the averaged model as the Trainer saves models: `from_pretrained(folder)` loads it. All ranks call it.

        Raises:
            RuntimeError: there is no average yet.
        """
        with self.averaged() as ready:
            if not ready:
                raise RuntimeError(f"there is no average to save yet: {self.averager!r}")
            assert self._trainer is not None
            self._trainer.save_model(str(folder))


def _has_shards(state: dict[str, Any]) -> bool:
    return any(isinstance(vector, dict) for track in state["tracks"] for vector in track["vectors"])

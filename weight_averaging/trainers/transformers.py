"""Weight averaging in Hugging Face's Trainer (the extra `transformers`). How to use it: docs/trainers.md."""

import contextlib
import functools
import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from weight_averaging.torch import Averager
from weight_averaging.torch.model.modes import training_mode
from weight_averaging.trainers.averaging import Averaging
from weight_averaging.trainers.derived_trainers import engine_loads_anew, gathered_apart, trained_outside
from weight_averaging.trainers.passes import apart, kept_order, kept_random_numbers, recompute
from weight_averaging.trainers.state_files import load_state, save_state

logger = logging.getLogger("weight_averaging")

STATE = "weight_averaging"  # beside a checkpoint's other files: .pt, or a folder of shards


class WeightAveraging(Averaging, TrainerCallback):
    """Train on the raw weights, evaluate and predict on their average.

        averaging = WeightAveraging(lambda model: LAWA(model, interval=64, window=20)).attach(trainer)
        trainer.train()
        averaging.save_pretrained("averaged")

    A callback alone does not do. The Trainer has no event before an evaluation. It tells callbacks neither the folder
    that it resumes from nor the one that it saves to. `attach` adds this one, puts `averaged()` around the Trainer's
    `evaluation_loop`, and lets its `_save_checkpoint` and `_load_best_model` take the averager's state along.

    An update is an optimizer step: one in `gradient_accumulation_steps` batches, none where GradScaler skipped it. (The
    Trainer's `global_step` counts those. Steps that fused optimizers, the default, skip on the device count too.)
    A `checkpoint-N` has the raw weights and, beside them, the averager's state. `train(resume_from_checkpoint=...)`
    resumes bit for bit. With `load_best_model_at_end` the best checkpoint is the one whose average was best. After
    training both the raw weights and the average are those of it.

    An average belongs to the run whose weights the model has. Weights that were loaded after `train` are evaluated as
    they are. A `train` that begins with others than the last one ended with has a new average. A warning says so.

    Args:
        make: called with the model at the beginning of training, where training has it; returns any averager of
            `weight_averaging.torch`.
        settings: `"new"` goes on with checkpoints of another window, interval or decay, and of a model with fewer or
            more averaged tensors; `"same"` refuses them. See `Averager.load_state_dict`.
        evaluate: `"average"` evaluates and predicts with the average. `"both"` does so twice, first with the raw
            weights, whose metrics are named `eval_raw_...`. `"apart"` leaves what the Trainer evaluates alone and has a
            pass of its own, with metrics named `eval_NAME_...`. It is for a second average of the same weights.
        name: of this average among several, each of which has its own file in checkpoints, `weight_averaging_NAME.pt`.
        forward: for `buffers="recompute"`: runs the model on a batch of training, by default as `model(**inputs)`.
        batches: how many of them, at most; on each rank.
    Attributes:
        averager: the averager; None before training.
    """

    def __init__(
        self,
        make: Callable[[nn.Module], Averager],
        *,
        settings: str = "same",
        evaluate: str = "average",
        name: str = "",
        forward: Callable[[Any, Any], object] | None = None,
        batches: int = 100,
    ) -> None:
        super().__init__(make, settings, evaluate, name, forward or _call, batches)
        self._file = f"{STATE}_{name}" if name else STATE
        self._trainer: Trainer | None = None
        self._resumed: Path | None = None  # the folder that this run of training goes on from
        self._counted = 0  # the Trainer's step that the average has seen last

    def attach(self, trainer: Trainer) -> "WeightAveraging":
        """Let a Trainer, or one of a class derived from it, average; before `train`. Returns this callback.

        Raises:
            TypeError: it is no Trainer. RuntimeError: it has another one of this name, or this one has a Trainer.
        """
        if not isinstance(trainer, Trainer):
            kind = type(trainer)  # setfit's is called Trainer too
            raise TypeError(f"attach takes a transformers.Trainer, not a {kind.__module__}.{kind.__qualname__}")
        others = [c for c in trainer.callback_handler.callbacks if isinstance(c, WeightAveraging) and c is not self]
        if self.name in [other.name for other in others]:
            raise RuntimeError("the Trainer has a WeightAveraging already: give this one a name= of its own")
        if self._trainer is not None:
            raise RuntimeError("this WeightAveraging is attached to a Trainer already: make another one")
        self._trainer = trainer
        trainer.add_callback(self)
        for name in ("evaluation_loop", "prediction_loop"):  # the latter in releases before 5
            if hasattr(trainer, name):
                setattr(trainer, name, self._around(getattr(trainer, name)))
        setattr(trainer, "train", self._noting(trainer.train))  # noqa: B010
        setattr(trainer, "_save_checkpoint", self._saving(trainer._save_checkpoint))  # noqa: B010
        setattr(trainer, "_load_best_model", self._loading(trainer._load_best_model))  # noqa: B010
        return self

    def _around(self, loop: Callable[..., Any]) -> Callable[..., Any]:
        alone = getattr(loop, "alone", loop)
        signature = inspect.signature(loop)

        @functools.wraps(loop)
        def evaluated(*args: Any, **kwargs: Any) -> Any:
            assert self._trainer is not None
            if not self._pass:
                return self._averaged_loop(loop, *args, **kwargs)
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            key, prefix = "metric_key_prefix", given.arguments["metric_key_prefix"]
            prefixed = {**given.arguments, key: f"{prefix}_{self._pass}"}
            with (
                kept_random_numbers(),
                kept_order(given.arguments["dataloader"]),
                gathered_apart(self._trainer) as means,
                self._passes(),
            ):
                extra = self._averaged_loop(alone, **prefixed)
            output = self._averaged_loop(loop, *args, **kwargs)
            output.metrics.update(extra.metrics)
            if prefix.startswith("eval"):  # what such a Trainer has gathered in a prediction it does not log either
                output.metrics.update({f"eval_{self._pass}_{name}": mean for name, mean in means.items()})
            return output

        evaluated.alone = alone  # type: ignore[attr-defined]
        return evaluated

    def _averaged_loop(self, loop: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A pass of the Trainer over data, with the average if that is what it is to see."""
        assert self._trainer is not None
        with engine_loads_anew(self._trainer):
            return self._loop(loop, *args, **kwargs)

    def _loop(self, loop: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        assert self._trainer is not None
        if not self._shows:
            return loop(*args, **kwargs)
        if self.averager is None or self._model is None or self._model is not self._trainer.model:
            logger.warning("WeightAveraging has no average of this model: its weights are used as they are")
            return loop(*args, **kwargs)
        if not self.averager.step or not self._is_own():  # eval_on_start; another run's
            return loop(*args, **kwargs)
        model = self._model
        optimizer: Any = self._trainer.optimizer
        if callable(getattr(optimizer, "eval", None)):  # schedule-free: the loop would do so on the average
            optimizer.eval()
        evaluating = contextlib.ExitStack()
        with training_mode(model, then_eval=True):
            evaluating.enter_context(self.averager.averaged(self._recompute))
        try:
            return loop(*args, **kwargs)
        finally:
            with training_mode(model, then_eval=False):
                evaluating.close()
                self._leave()  # the loop may have given the model another type, the optimizer other weights

    def _recompute(self) -> None:
        trainer, model, forward = self._trainer, self._model, self._forward
        assert trainer is not None
        assert model is not None
        assert forward is not None
        loader = trainer.callback_handler.train_dataloader or trainer.get_train_dataloader()
        # accelerate's own would take this pass for training's, and the end of its data for that of an epoch.
        plain = getattr(loader, "base_dataloader", loader)

        def run(inputs: Any) -> None:
            with trainer.compute_loss_context_manager():
                forward(model, trainer._prepare_inputs(inputs))

        modes = {part: part.training for part in model.modules()}
        try:
            model.train()  # what stays in evaluation mode then is frozen
            with kept_random_numbers(), apart(plain) as own:
                recompute(model, own, self._batches, run)
        finally:
            for part, mode in modes.items():
                part.training = mode

    def _noting(self, train: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(train)
        def noted(resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
            assert self._trainer is not None
            folder: Any = resume_from_checkpoint or None
            if folder is True:
                folder = get_last_checkpoint(self._trainer.args.output_dir)
            self._resumed = Path(folder) if folder else None
            try:
                return train(resume_from_checkpoint, *args, **kwargs)
            except BaseException:
                self._interrupted()
                raise
            finally:
                self._training = False

        return noted

    # Training.

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the averager, where the weights are now, or go on with that of the checkpoint."""
        if self._trainer is None:
            raise RuntimeError("WeightAveraging(...).attach(trainer), instead of callbacks=[WeightAveraging(...)]")
        model: Any = self._trainer.model  # what callbacks are told may be another one (setfit)
        if self._resumed is None:
            self._begin_anew_if_other(model)
        elif not load_state(self._of(model), self._resumed, self._file, self._settings):
            logger.warning("%s has no state of WeightAveraging: the average begins anew", self._resumed)
            self._forget()
        averager = self._of(model)
        self._refuse_overlap(self._trainer.callback_handler.callbacks)
        if not averager.step:
            averager.step = state.global_step
        self._training, self._counted = True, state.global_step
        if others := ", ".join(trained_outside(self._trainer, model, averager)):
            logger.warning("the optimizer also trains %s, no part of the model: not averaged, evaluated as is", others)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """One update more, if the step was not skipped."""
        self._count(state)

    def _count(self, state: TrainerState) -> None:
        """Once for each step: a checkpoint may be asked for by a callback that comes before this one."""
        assert self._trainer is not None
        assert self.averager is not None
        if state.global_step != self._counted:
            self._counted = state.global_step
            if not self._trainer.accelerator.optimizer_step_was_skipped:
                self._updated([self._trainer.optimizer])

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remember the weights: what comes after the last epoch is no training."""
        self._leave()

    def _saving(self, save: Callable[..., Any]) -> Callable[..., Any]:
        """Put the averager's state into the checkpoint that was just written, wherever that is and whoever asked."""

        @functools.wraps(save)
        def saved(model: nn.Module, trial: Any, *args: Any, **kwargs: Any) -> Any:
            result = save(model, trial, *args, **kwargs)
            trainer = self._trainer
            if trainer is not None and self.averager is not None and self._training:
                self._count(trainer.state)
                folder = Path(trainer._get_output_dir(trial=trial)) / f"checkpoint-{trainer.state.global_step}"
                save_state(self.averager.state_dict(), folder, self._file, trainer.args.should_save)
            return result

        return saved

    def _loading(self, load: Callable[[], Any]) -> Callable[[], Any]:
        """Take the average of the best checkpoint with its weights."""

        @functools.wraps(load)
        def loaded() -> Any:
            result = load()
            if self._trainer is not None and self.averager is not None:
                folder = Path(str(self._trainer.state.best_model_checkpoint))
                self._training = False  # the weights are not those of the last update any more
                if load_state(self.averager, folder, self._file, self._settings):
                    self._leave()
                else:
                    logger.warning("%s has no state of WeightAveraging: there is no average of the best model", folder)
            return result

        return loaded

    def save_pretrained(self, folder: str | Path) -> None:
        """Save the averaged model as the Trainer saves models: `from_pretrained(folder)` loads it. All ranks call it.

        Raises:
            RuntimeError: there is no average yet, or the model has other weights than those that it belongs to.
        """
        with self.averaged() as ready:
            if not ready:
                raise RuntimeError(f"there is no average of the model's weights to save: {self.averager!r}")
            assert self._trainer is not None
            self._trainer.save_model(str(folder))


def _call(model: nn.Module, inputs: Any) -> object:
    return model(**inputs)

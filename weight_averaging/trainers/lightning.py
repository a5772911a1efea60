"""Weight averaging in PyTorch Lightning: `pip install weight-averaging[lightning]`. How to use it: docs/trainers.md."""

import contextlib
import logging
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from weight_averaging.torch import Averager
from weight_averaging.torch.model.modes import training_mode
from weight_averaging.trainers.averaging import Averaging
from weight_averaging.trainers.lightning_passes import add_pass, loop_of, recompute_from_training, remove_passes
from weight_averaging.trainers.shards import gathered, scattered
from weight_averaging.trainers.steps import watch

logger = logging.getLogger("weight_averaging")

_REFUSED = ("FSDPStrategy", "XLAFSDPStrategy", "DeepSpeedStrategy")  # their weights are not where a module has them


class WeightAveraging(Averaging, Callback):
    """Train on the raw weights, validate, test and predict on their average.

        WeightAveraging(lambda module: LAWA(module, interval=64, window=20))

    An update is a batch after which an optimizer has stepped. With gradient accumulation it is one in so many batches,
    with several optimizers one for all that stepped in the batch. With GradScaler it is none where the step was
    skipped. A step that a fused optimizer skips on the device counts, since nobody sees it there. (Lightning's
    `global_step` counts skipped steps, and those of every optimizer.)

    The averager's state is part of every full checkpoint, whose `state_dict` has the raw weights. `fit(ckpt_path=...)`
    resumes bit for bit, `test(ckpt_path=...)` tests the average of that checkpoint. One without a state (of weights
    only, or of a run without averaging) is tested as it is. After `fit` the module holds its raw weights.

    An average belongs to the run whose weights the module has. Weights that were loaded after `fit` are evaluated as
    they are. A `fit` that begins with others than the last one ended with has a new average. A warning says so.

    Under sharding (`ModelParallelStrategy`, FSDP2) every rank averages its shards; the state is gathered for the
    checkpoint, on the first rank and in its main memory. FSDP1 and DeepSpeed are refused.

    Args:
        make: called once with the LightningModule, where training has it (on its device, with its shards). Returns any
            averager of `weight_averaging.torch`, of the whole module or of a part. For strategies that spawn processes
            something that can be pickled: `functools.partial(LAWA, interval=64, window=20)`.
        settings: `"new"` goes on with checkpoints of another window, interval or decay, and of a model with fewer or
            more averaged tensors; `"same"` refuses them. See `Averager.load_state_dict`.
        evaluate: `"average"` validates and tests the average. `"both"` does so twice, first with the raw weights, whose
            metrics are named `raw_...`. `"apart"` leaves what the trainer evaluates alone and has a pass of its own,
            with metrics named `NAME_...`. It is for a second average of the same weights.
        name: of this average among several, each of which has its own state in checkpoints.
        forward: for `buffers="recompute"`: `forward(module, batch)` runs the module on a batch of training, as
            `lambda module, batch: module(batch[0])`. The batches are those of a new pass over the training data.
        batches: how many of them, at most; on each rank.

    Attributes:
        averager: the averager; None before training.
    """

    def __init__(
        self,
        make: Callable[[LightningModule], Averager],
        *,
        settings: str = "same",
        evaluate: str = "average",
        name: str = "",
        forward: Callable[[Any, Any], object] | None = None,
        batches: int = 100,
    ) -> None:
        super().__init__(make, settings, evaluate, name, forward, batches)
        self._evaluating = contextlib.ExitStack()  # closed, it takes the average out
        self._loaded: dict[str, Any] | None = None  # a state that waits for an averager to load it
        self._has_state = False  # whether the checkpoint that this run began from has a state
        self._begun = False
        self._trainer: Any = None  # of this run, or the last one
        self._loop: Any = None  # that evaluates in it
        self._stepped = False
        self._unwatching: list[Callable[[], object]] = []

    @property
    def state_key(self) -> str:
        """Under which checkpoints have the state."""
        return self._generate_state_key(name=self.name) if self.name else super().state_key

    # Which averager.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin a run: nothing is loaded yet."""
        self._loaded, self._has_state, self._begun = None, False, False
        if (strategy := type(trainer.strategy).__name__) in _REFUSED:
            raise ValueError(
                f"WeightAveraging cannot see the weights under {strategy}: use ModelParallelStrategy (FSDP2)"
            )
        self._trainer, self._loop = trainer, loop_of(trainer, stage)
        if self._pass and self._loop is not None:
            callbacks: list[Callback] = [self] if self._evaluate == "apart" else []
            add_pass(trainer, self._loop, self._pass, callbacks, self._passes)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the averager, or load its state, where the weights are now."""
        self._begin(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same, where there was no sanity check; and watch the optimizers."""
        self._begin(trainer, pl_module)
        self._watch(trainer)

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._begun:
            return
        self._begun = True
        if trainer.ckpt_path is not None and not self._has_state:
            logger.warning("%s has no state of WeightAveraging: the average begins anew", trainer.ckpt_path)
            self._forget()
        elif trainer.ckpt_path is None:
            self._begin_anew_if_other(pl_module)
        self._training = True
        averager = self._of(pl_module)
        self._refuse_overlap(trainer.callbacks)  # type: ignore[attr-defined]
        self._restore(averager)
        if not averager.step:
            averager.step = trainer.global_step

    def _restore(self, averager: Averager) -> None:
        if self._loaded is not None:
            averager.load_state_dict(scattered(self._loaded, averager), settings=self._settings)
            self._loaded = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the weights: what comes after the last epoch, of whatever callback, is no training."""
        self._leave()

    # After every update.

    def _watch(self, trainer: Trainer) -> None:
        self._unwatch()

        def stepped() -> None:
            self._stepped = True

        self._unwatching = [watch(optimizer, stepped) for optimizer in trainer.optimizers]

    def _unwatch(self) -> None:
        for end in self._unwatching:
            end()
        self._unwatching, self._stepped = [], False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One update more, if an optimizer has stepped."""
        if self._stepped:
            self._stepped = False
            self._updated(trainer.optimizers)

    # Around evaluations.

    def _swap_in(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._shows:
            return
        if trainer.state.fn != TrainerFn.FITTING and not self._begin_evaluation(trainer, pl_module):
            return
        assert self.averager is not None
        if self.averager.ready or not trainer.sanity_checking:  # which comes before any update
            self._swap_out()
            with training_mode(pl_module, then_eval=True):
                self._evaluating.enter_context(self.averager.averaged(self._recompute))

    def _begin_evaluation(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Whether there is an average for the weights that `validate`, `test` or `predict` has been given."""
        if self._has_state:
            if self._loaded is not None:
                self._restore(self._of(pl_module))
                with training_mode(pl_module, then_eval=True):
                    self._leave()
            return True
        if trainer.ckpt_path is not None:
            logger.info("%s has no state of WeightAveraging: its weights are used as they are", trainer.ckpt_path)
            return False
        if self._model is not pl_module:
            logger.warning("WeightAveraging has no average of this module: its weights are used as they are")
            return False
        return self._is_own()

    def _recompute(self) -> None:
        assert self._forward is not None
        recompute_from_training(self._trainer, self._model, self._loop, self._forward, self._batches)

    def _swap_out(self) -> None:
        """End an evaluation; within `averaged()` the average stays."""
        if self._model is not None:
            with training_mode(self._model, then_eval=False):
                self._evaluating.close()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average in."""
        self._swap_in(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average in."""
        self._swap_in(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average in."""
        self._swap_in(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the raw weights back; checkpoints are written after this."""
        self._swap_out()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the raw weights back."""
        self._swap_out()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the raw weights back."""
        self._swap_out()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the raw weights back, whatever went wrong."""
        self._swap_out()
        self._unwatch()
        self._interrupted()
        remove_passes(self._loop)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the optimizers and loops as they were."""
        self._unwatch()
        self._training = False
        remove_passes(self._loop)

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        """The averager's; empty before there is one. Of a sharded model collective, and whole on the first rank.

        Empty too where the module has other weights than those that the average belongs to.
        """
        return gathered(self.averager.state_dict()) if self.averager is not None and not self._other_weights() else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a state until the module is where training has it."""
        if "averager" in state_dict:  # else it is of Lightning's own callback, which has the same name
            self._loaded, self._has_state = state_dict, True

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Train on from the raw weights also of a checkpoint of Lightning's own callback."""
        if trainer.state.fn == TrainerFn.FITTING and "current_model_state" in checkpoint:
            logger.warning("a checkpoint of Lightning's own WeightAveraging: training goes on from its raw weights")
            raw = {**checkpoint, "state_dict": checkpoint["current_model_state"]}
            trainer.strategy.load_model_state_dict(raw, strict=pl_module.strict_loading)


class AveragedCheckpoint(ModelCheckpoint):
    """A `ModelCheckpoint` of the average: `load_from_checkpoint` of its files gives the averaged model.

    They have nothing to resume from: keep a plain ModelCheckpoint beside it. Until the average is ready they have the
    raw weights, which are then what validation sees.

    Args:
        of: the name of a WeightAveraging, if it is not to be what the trainer evaluates.
        options: of ModelCheckpoint.
    """

    def __init__(self, *, of: str = "", **options: Any) -> None:
        self._of = of
        super().__init__(**{**options, "save_weights_only": True})

    @property
    def state_key(self) -> str:
        """Under which checkpoints have its state."""
        return f"{super().state_key} of {self._of}" if self._of else super().state_key

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        all_of_them = [callback for callback in callbacks if isinstance(callback, WeightAveraging)]
        if not all_of_them:
            raise RuntimeError("AveragedCheckpoint needs a WeightAveraging among the callbacks")
        if self._of and self._of not in [averaging.name for averaging in all_of_them]:
            raise RuntimeError(f"AveragedCheckpoint(of={self._of!r}): no WeightAveraging has this name")
        with contextlib.ExitStack() as stack:
            for averaging in all_of_them:
                if averaging.name == self._of if self._of else averaging._shows:
                    stack.enter_context(averaging.averaged())
            super()._save_checkpoint(trainer, filepath)

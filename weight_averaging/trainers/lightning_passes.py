"""Passes of Lightning's evaluation loops beside their own, whose metrics have other names."""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import CombinedLoader
from torch.utils._pytree import tree_map

from weight_averaging.trainers.passes import apart, kept_random_numbers, recompute


def loop_of(trainer: Trainer, stage: str) -> Any:
    """The loop that evaluates in `fit`, `validate` or `test`; None in `predict`."""
    loops = {"fit": trainer.fit_loop.epoch_loop.val_loop, "validate": trainer.validate_loop, "test": trainer.test_loop}
    return loops.get(stage)


def add_pass(trainer: Trainer, loop: Any, prefix: str, callbacks: list[Callback], inside: Callable[[], Any]) -> None:
    """Let each run of a loop be preceded by another, without the trainer's callbacks, until `remove_passes`.

    What the module logs there has names that begin with the prefix, in loggers, `callback_metrics` and what the trainer
    returns. Random numbers and the loop's progress are as if it had not been.

    Args:
        callbacks: those of that pass.
        inside: makes a context for it.
    """
    run = loop.run
    alone = getattr(run, "alone", run)

    @functools.wraps(run)
    def both() -> list[dict[str, Any]]:
        if trainer.sanity_checking:
            outputs: list[dict[str, Any]] = run()
            return outputs
        everyone = trainer.callbacks  # type: ignore[attr-defined]
        kept = {name: copy.deepcopy(getattr(loop, name)) for name in ("_seen_batches_per_dataloader", "_restarting")}
        progress = copy.deepcopy(loop.batch_progress.state_dict())
        try:
            trainer.callbacks = callbacks  # type: ignore[attr-defined]
            with kept_random_numbers(), _prefixed(trainer.lightning_module, prefix), inside():
                extra = alone()
        finally:
            trainer.callbacks = everyone  # type: ignore[attr-defined]
        loop.batch_progress.load_state_dict(progress)
        for name, value in kept.items():
            setattr(loop, name, value)
        own = run()
        return [{**more, **metrics} for more, metrics in zip(extra, own, strict=True)] if extra else own

    both.alone = alone  # type: ignore[attr-defined]
    loop.run = both


def remove_passes(loop: Any) -> None:
    """Let a loop run as it did."""
    if loop is not None:
        vars(loop).pop("run", None)


@contextlib.contextmanager
def _prefixed(module: LightningModule, prefix: str) -> Iterator[None]:
    log = module.log

    def prefixed(name: str, *args: Any, **options: Any) -> None:
        log(f"{prefix}_{name}", *args, **options)

    vars(module)["log"] = prefixed
    try:
        yield
    finally:
        vars(module).pop("log")


def recompute_from_training(
    trainer: Trainer, module: Any, loop: Any, forward: Callable[[Any, Any], object], batches: int
) -> None:
    """Bring batch-norm statistics up to date on training data, of which training does not notice a pass."""
    data = trainer.train_dataloader
    if data is None:
        source: Any = trainer.datamodule if trainer.datamodule is not None else module  # type: ignore[attr-defined]
        data = source.train_dataloader()
    used = trainer.fit_loop._combined_loader

    def run(batch: Any) -> None:
        batch = trainer.precision_plugin.convert_input(batch[0])  # with its number and that of its loader
        batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
        batch = trainer.strategy.batch_to_device(batch, device=module.device, dataloader_idx=0)
        with trainer.precision_plugin.forward_context():
            forward(module, batch)

    with kept_random_numbers(), contextlib.ExitStack() as stack, _modes_of_training(module, loop):
        loaders = tree_map(lambda loader: stack.enter_context(apart(loader)), data)
        together = CombinedLoader(loaders, "max_size_cycle" if used is None else used._mode)
        recompute(module, together, batches, run)


@contextlib.contextmanager
def _modes_of_training(module: LightningModule, loop: Any) -> Iterator[None]:
    """Batch norm that is frozen is in evaluation mode in training, and told from the rest by that."""
    training = loop._module_mode.mode if loop is not None and loop._trainer_fn == TrainerFn.FITTING else {}
    modes = {part: part.training for part in module.modules()}
    for name, part in module.named_modules():
        part.training = training.get(name, part.training)
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode

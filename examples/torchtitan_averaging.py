"""Weight averaging in torchtitan: a trainer that keeps an average beside its optimizers.

The average is told after every optimizer step, is in the model during validation, and is one more state of torchtitan's
checkpoints, from any number of ranks to any other. A configuration file takes it in the place of `Trainer`.
"""

from collections.abc import Callable
from typing import Any

from torchtitan.trainer import Trainer

from weight_averaging import LAWA
from weight_averaging.torch import Averager


def attach(trainer: Any, averager: Averager) -> None:
    """Wire an averager of `trainer.model_parts`, before `trainer.train()` loads a checkpoint."""
    trainer.optimizers.register_step_post_hook(lambda *_: averager.update(trainer.step))
    trainer.checkpointer.states["averager"] = averager
    if (validator := getattr(trainer, "validator", None)) is not None:
        validator.validate = of_average(validator.validate, averager)


def of_average(validate: Callable[..., Any], averager: Averager) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with averager.averaged():
            return validate(*args, **kwargs)

    return run


class AveragingTrainer(Trainer):  # type: ignore[misc]
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        stages = self.parallel_dims.get_optional_mesh("pp")  # one list of stages a rank; all layers without a pipeline
        group = None if stages is None else stages.get_group()
        attach(self, LAWA(self.model_parts, interval=64, window=20, model_parallel_group=group))

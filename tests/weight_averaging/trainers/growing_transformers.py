"""Under Hugging Face's Trainer a model whose one weight grows by the learning rate, 1, at each step."""

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments

from weight_averaging.torch import LAWA
from weight_averaging.trainers.transformers import WeightAveraging


class Growing(PreTrainedModel):
    config_class = PretrainedConfig

    def __init__(self, config=None):
        super().__init__(config or PretrainedConfig())
        self.w = nn.Parameter(torch.zeros(1))
        self.post_init()

    def _init_weights(self, module):
        pass

    def forward(self, x, labels=None):
        return {"loss": -self.w.sum() + 0 * x.sum(), "logits": x}


def trainer(folder, search: bool = False, model=None, rows=None, **settings) -> Trainer:
    """Args: search: make the model anew for each run."""
    given = {
        "per_device_train_batch_size": 1, "max_steps": 4, "use_cpu": True, "report_to": [], "learning_rate": 1.0,
        "lr_scheduler_type": "constant", "optim": "sgd", "disable_tqdm": True, "max_grad_norm": 0.0,
        "save_strategy": "no", "logging_strategy": "no", **settings,
    }  # fmt: skip
    rows = rows or [{"x": torch.zeros(1), "labels": torch.zeros(1)}] * 32
    made = {"model_init": lambda: Growing()} if search else {"model": model or Growing()}
    return Trainer(args=TrainingArguments(str(folder), **given), train_dataset=rows, eval_dataset=rows[:1], **made)


def averaging(window: int = 2, **options) -> WeightAveraging:
    return WeightAveraging(lambda model: LAWA(model, interval=1, window=window), **options)


def held(folder, name: str = "weight_averaging") -> list[float]:
    state = torch.load(folder / f"{name}.pt", weights_only=True)
    return [vector.item() for vector in state["tracks"][0]["vectors"]]


def at(trainer: Trainer, event: str, step: int, act) -> None:
    """Do something when an event comes with this many steps done."""
    real = getattr(trainer.callback_handler, event)

    def noted(args, state, control):
        if state.global_step == step:
            act()
        return real(args, state, control)

    setattr(trainer.callback_handler, event, noted)


def failing_at(trainer: Trainer, step: int) -> None:
    def fail():
        raise ArithmeticError

    at(trainer, "on_step_begin", step, fail)


def signal_at(trainer: Trainer, event: str, step: int) -> None:
    """What SIGTERM does, after its grace period."""
    jit = next(c for c in trainer.callback_handler.callbacks if type(c).__name__ == "JITCheckpointCallback").jit_manager
    at(trainer, event, step, lambda: setattr(jit, "is_checkpoint_requested", True))

"""Under Lightning a module whose one weight grows by one at each step."""

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from weight_averaging.torch import LAWA
from weight_averaging.trainers.lightning import AveragedCheckpoint, WeightAveraging

__all__ = ["AveragedCheckpoint", "Growing", "ModelCheckpoint", "WeightAveraging", "averaging", "rows", "trainer"]


class Growing(pl.LightningModule):
    """`seen` are the weights of evaluations."""

    def __init__(self, fails_at: int = 0) -> None:
        super().__init__()
        self.w, self.seen, self.fails_at = nn.Parameter(torch.zeros(1)), [], fails_at

    def training_step(self, batch, _):
        if self.fails_at and self.global_step == self.fails_at:
            raise ArithmeticError
        return -self.w.sum()

    def validation_step(self, batch, _):
        self.seen.append(self.w.item())
        self.log("v", self.w.item())

    test_step = validation_step

    def predict_step(self, batch, _):
        self.seen.append(self.w.item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def rows(count: int):
    return torch.utils.data.DataLoader(torch.zeros(count, 1))


def trainer(folder, *callbacks, **settings) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    plain = {} if any(isinstance(c, ModelCheckpoint) for c in callbacks) else {"enable_checkpointing": False}
    given = {"max_epochs": 1, "num_sanity_val_steps": 0, **quiet, **plain, **settings}
    return pl.Trainer(default_root_dir=folder, callbacks=list(callbacks), **given)


def averaging(window: int = 2, **options) -> WeightAveraging:
    return WeightAveraging(lambda module: LAWA(module, interval=1, window=window), **options)

"""An average that follows the learning rate has it from the trainer's optimizer."""

import pytest
import torch

from tests.support import reference
from weight_averaging.averages import FollowsRate
from weight_averaging.torch import LAWA, Averager
from weight_averaging.trainers.averaging import Averaging
from weight_averaging.trainers.steps import rate_of

DESCRIBED = FollowsRate(share=0.5, interval=1)
pytestmark = pytest.mark.filterwarnings("ignore")


def test_in_lightning(tmp_path):
    pytest.importorskip("lightning")
    from tests.weight_averaging.trainers import growing_lightning as lightning

    class Annealed(lightning.Growing):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            return [optimizer], [{"scheduler": torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.25, 4), **STEP}]

    module, averaging = Annealed(), lightning.WeightAveraging(lambda module: Averager(module, DESCRIBED))
    lightning.trainer(tmp_path, averaging).fit(module, lightning.rows(4))
    check(averaging.averager)


STEP = {"interval": "step"}


def test_in_hugging_faces_trainer(tmp_path):
    pytest.importorskip("transformers")
    from tests.weight_averaging.trainers import growing_transformers as transformers

    trainer = transformers.trainer(tmp_path, max_steps=4)
    optimizer = torch.optim.SGD(trainer.model.parameters(), lr=1.0)
    trainer.optimizer, trainer.lr_scheduler = optimizer, torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.25, 4)
    averaging = transformers.WeightAveraging(lambda model: Averager(model, DESCRIBED)).attach(trainer)
    trainer.train()
    check(averaging.averager)


def check(averager: Averager) -> None:
    """After four updates by rates of 1, .8125, .625, .4375; each is told once the scheduler has gone on."""
    rates = [0.8125, 0.625, 0.4375, 0.25]
    snapshots = [1.0, 1.8125, 2.4375, 2.875]
    expected = reference.follows_rate(rates, 0.5) @ snapshots
    assert averager.average_state_dict()["w"].item() == pytest.approx(expected, rel=1e-6)


def test_it_is_read_only_where_it_is_followed():
    """A rate that is a tensor on a device would be waited for."""

    class Optimizer:
        @property
        def param_groups(self):
            raise AssertionError

    holder = Averaging(lambda model: None, "same", "average", "", None, 1)
    holder.averager = LAWA(torch.nn.Linear(1, 1), interval=1, window=2)
    holder._updated([Optimizer()])
    assert holder.averager.step == 1
    holder.averager = Averager(torch.nn.Linear(1, 1), DESCRIBED)
    with pytest.raises(AssertionError):
        holder._updated([Optimizer()])


def test_the_largest_of_all_groups():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": parameters[:1], "lr": 0.0}, {"params": parameters[1:], "lr": torch.tensor(0.5)}]
    assert rate_of([torch.optim.SGD(groups), object()]) == 0.5
    assert rate_of([object()]) is None

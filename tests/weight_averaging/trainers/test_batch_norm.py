"""Batch norm recomputed in the trainers, from their training data."""

import pytest
import torch
from torch import nn

from tests.weight_averaging.trainers.test_whose_average import hugging_face, lightning  # noqa: F401
from weight_averaging.torch import EMA, LAWA, recompute_batch_norm
from weight_averaging.trainers.passes import recompute


def test_there_has_to_be_a_batch():
    with pytest.raises(RuntimeError, match="no batch of training to recompute"):
        recompute(nn.BatchNorm1d(1), [], 3, lambda batch: None)


class Net(nn.Module):
    """Batch norm that is trained and frozen, of data whose mean is 3."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.frozen = nn.Linear(2, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3)
        self.frozen.eval()

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, x):
        return self.frozen(self.norm(self.first(x))).mean()


def statistics(model) -> list[torch.Tensor]:
    names = ("norm.running_mean", "norm.running_var", "frozen.running_mean")
    return [dict(model.named_buffers())[name].clone() for name in names]


def expected_statistics(averaging, net, inputs) -> list[torch.Tensor]:
    """Those of the averaged weights, over batches of two in their order."""
    copied = Net()
    copied.load_state_dict(net.state_dict())
    other = LAWA(copied, interval=1, window=2, buffers="recompute")
    other.load_state_dict(averaging.averager.state_dict())
    batches = inputs.split(2)
    copied.train()
    with other.averaged(lambda: recompute_batch_norm(copied, [lambda b=b: copied(b) for b in batches])):
        return statistics(copied)


INPUTS = torch.randn(8, 2, generator=torch.Generator().manual_seed(0)) + 3


def test_lightning_recomputes_batch_norm_from_training_data(lightning, tmp_path):  # noqa: F811
    class Module(lightning.Growing):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = Net()

        def training_step(self, batch, _):
            return self.net(batch)

        def validation_step(self, batch, _):
            self.seen.append(statistics(self.net))

        def train_dataloader(self):
            return torch.utils.data.DataLoader(INPUTS, 2)

        test_step = validation_step

    ends = []
    for buffers in ("recompute", "latest"):
        module, averaging = (
            Module(),
            lightning.WeightAveraging(
                lambda m, buffers=buffers: LAWA(m.net, interval=1, window=2, buffers=buffers),
                forward=lambda module, batch: module.net(batch),
            ),
        )
        saving = lightning.ModelCheckpoint(tmp_path / buffers, save_last=True, save_on_train_epoch_end=True)
        trainer = lightning.trainer(tmp_path, averaging, saving, max_epochs=2, val_check_interval=3)
        trainer.fit(module, val_dataloaders=lightning.rows(1))
        ends.append({name: value.clone() for name, value in module.net.state_dict().items()})
        if buffers == "recompute":
            expected = expected_statistics(averaging, module.net, INPUTS)
            module.seen.clear()
            trainer.test(module, lightning.rows(1), verbose=False)
            with averaging.averaged():
                module.seen.append(statistics(module.net))
            fresh = lightning.trainer(tmp_path, averaging)
            fresh.test(module, lightning.rows(1), ckpt_path=tmp_path / buffers / "last.ckpt", verbose=False)
            assert len(module.seen) == 3
            for seen in module.seen:
                for one, other in zip(seen, expected, strict=True):
                    torch.testing.assert_close(one, other)
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


def test_hugging_face_recomputes_batch_norm_from_training_data(hugging_face, tmp_path):  # noqa: F811
    seen = []

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = Net()

        def forward(self, x, labels=None):
            if not self.training:
                seen.append(statistics(self.net))
            return {"loss": self.net(x), "logits": x}

    def trainer_of(folder, buffers):
        trainer = hugging_face.trainer(
            folder, max_steps=8, per_device_train_batch_size=2, eval_strategy="steps", eval_steps=3, learning_rate=0.1,
            model=Model(), rows=[{"x": x, "labels": torch.zeros(1)} for x in INPUTS],
        )  # fmt: skip
        averaging = hugging_face.WeightAveraging(lambda m: LAWA(m.net, interval=1, window=2, buffers=buffers))
        return trainer, averaging.attach(trainer)

    ends = []
    for buffers in ("recompute", "latest"):
        trainer, averaging = trainer_of(tmp_path, buffers)
        trainer.train()
        ends.append({name: value.clone() for name, value in trainer.model.net.state_dict().items()})
        if buffers == "recompute":
            seen.clear()
            trainer.evaluate()
            # In another order of the batches the means are alike, up to the weights that the momentum gives them.
            expected = expected_statistics(averaging, trainer.model.net, INPUTS)
            torch.testing.assert_close(seen[0][0], expected[0], rtol=0.2, atol=0.2)
            torch.testing.assert_close(seen[0][2], expected[2])
            assert not torch.allclose(seen[0][0], ends[0]["norm.running_mean"], atol=1e-3)
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


def test_an_average_without_statistics_needs_to_know_how_to_run_the_module(lightning, tmp_path):  # noqa: F811
    averaging = lightning.WeightAveraging(lambda m: EMA(m, decay=0.5, buffers="recompute"))
    with pytest.raises(ValueError, match=r"needs WeightAveraging.* forward=lambda model, batch"):
        lightning.trainer(tmp_path, averaging).fit(lightning.Growing(), lightning.rows(1))

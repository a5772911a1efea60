"""What trainers do in eval(): layers that merge weights there, optimizers that swap them, tests inside `averaged()`."""

import pytest
import torch
from torch import nn

from tests.support.merging import MergingLayer, SwappingSGD
from weight_averaging.torch import LAWA
from weight_averaging.torch.model.modes import training_mode

X = torch.ones(8, 1)


def test_modes_are_as_before_and_models_without_a_train_of_their_own_are_left_alone():
    model = nn.Sequential(MergingLayer(), nn.Dropout(), nn.Linear(1, 1))
    model.eval()
    model[1].train()
    for then_eval in (True, False):
        with training_mode(model, then_eval):
            assert not model[0].merged
            assert model[2].training
        assert model[0].merged == then_eval
    assert [module.training for module in model] == [False, True, False]
    plain = nn.Linear(1, 1).eval()
    with training_mode(plain, True):
        assert not plain.training


# The output of the average of the last two of six updates, and the raw weights after them, without any trainer.
def by_hand(steps: int = 6) -> tuple[dict[int, float], list[float]]:
    layer = MergingLayer()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.02)
    snapshots, shown = [], {}
    for step in range(1, steps + 1):
        loss = (layer(X[:1]) - 5).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        snapshots.append([parameter.item() for parameter in layer.parameters()])
        if step % 2 == 0:
            w, a, b = (sum(values) / 2 for values in zip(*snapshots[-2:], strict=True))
            shown[step] = w + a * b
    return shown, snapshots[-1]


def test_lightning_evaluates_a_merging_layer_on_the_average_and_trains_it_unharmed(tmp_path):
    pl = pytest.importorskip("lightning.pytorch")
    from weight_averaging.trainers.lightning import WeightAveraging

    seen = {}

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = MergingLayer()

        def training_step(self, batch, _):
            return (self.layer(batch) - 5).square().mean()

        def validation_step(self, batch, _):
            seen[self.global_step] = self.layer(batch).item()

        test_step = validation_step

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.02)

    averaging = WeightAveraging(lambda module: LAWA(module, interval=1, window=2))
    trainer = pl.Trainer(
        max_steps=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[averaging], default_root_dir=tmp_path, val_check_interval=2,
        num_sanity_val_steps=0, check_val_every_n_epoch=None,
    )  # fmt: skip
    module = Module()
    batches = torch.utils.data.DataLoader(X, batch_size=1)
    held_out = torch.utils.data.DataLoader(X[:1])
    trainer.fit(module, batches, held_out)
    shown, raw = by_hand()
    assert seen == pytest.approx(shown, rel=1e-5)
    module.train()
    assert [parameter.item() for parameter in module.parameters()] == pytest.approx(raw, rel=1e-6)

    with averaging.averaged():  # what comes after a test inside it sees the average too
        average = module.layer.weight.item()
        seen.clear()
        trainer.test(module, held_out, verbose=False)
        assert seen == pytest.approx({6: shown[6]}, rel=1e-5)
        assert averaging.averager.swapped
        module.train()
        assert module.layer.weight.item() == pytest.approx(average, rel=1e-6)
    assert module.layer.weight.item() == pytest.approx(raw[0], rel=1e-6)


def trainer_of(folder, model, **given):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    arguments = transformers.TrainingArguments(
        str(folder), per_device_train_batch_size=1, max_steps=6, use_cpu=True, report_to=[], learning_rate=0.02,
        lr_scheduler_type="constant", optim="sgd", disable_tqdm=True, max_grad_norm=0.0, save_strategy="no",
        logging_strategy="no", eval_strategy="steps", eval_steps=2,
    )  # fmt: skip
    rows = [{"x": x, "labels": x} for x in X]
    return transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows[:1], **given)


class Regression(nn.Module):
    """As Hugging Face's Trainer calls models."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.seen = layer, []

    def forward(self, x, labels=None):
        y = self.layer(x)
        if not self.training:
            self.seen.append(y.item())
        return {"loss": (y - 5).square().mean(), "logits": y}


def test_hugging_face_evaluates_a_merging_layer_on_the_average_and_trains_it_unharmed(tmp_path):
    pytest.importorskip("transformers")
    from weight_averaging.trainers.transformers import WeightAveraging

    model = Regression(MergingLayer())
    trainer = trainer_of(tmp_path, model)
    WeightAveraging(lambda model: LAWA(model, interval=1, window=2)).attach(trainer)
    trainer.train()
    shown, raw = by_hand()
    assert model.seen == pytest.approx(list(shown.values()), rel=1e-5)
    model.train()
    assert [parameter.item() for parameter in model.parameters()] == pytest.approx(raw, rel=1e-6)


def test_an_optimizer_that_swaps_in_eval_trains_as_without_averaging(tmp_path):
    pytest.importorskip("transformers")
    from weight_averaging.trainers.transformers import WeightAveraging

    ends = []
    for average in (False, True):
        torch.manual_seed(0)
        model = Regression(nn.Linear(1, 1))
        optimizer = SwappingSGD(model.parameters(), lr=0.02)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        trainer = trainer_of(tmp_path / str(average), model, optimizers=(optimizer, schedule))
        if average:
            WeightAveraging(lambda model: LAWA(model, interval=1, window=1)).attach(trainer)
        trainer.train()
        model.train()
        optimizer.train()
        ends.append([parameter.item() for parameter in model.parameters()])
    assert ends[0] == ends[1]

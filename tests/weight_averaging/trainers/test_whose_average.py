"""An average belongs to the run whose weights the model has: weights that are loaded, put back or saved elsewhere.

Every model has one weight, which grows by the learning rate at each step: its value tells which snapshots are averaged.
"""

import logging

import pytest
import torch
from torch import nn

from tests.support.merging import MergingLayer
from weight_averaging.torch import EMA, LAWA
from weight_averaging.trainers.known_weights import KnownWeights


@pytest.fixture
def lightning():
    pytest.importorskip("lightning")
    from tests.weight_averaging.trainers import growing_lightning

    return growing_lightning


@pytest.fixture
def hugging_face():
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from tests.weight_averaging.trainers import growing_transformers

    return growing_transformers


# How weights are known again.


def test_weights_are_known_again_whatever_else_happens_to_them():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1, bias=False))
    ema = EMA(model, decay=0.5)
    known = KnownWeights(ema)
    model(torch.randn(2, 3, 5, 5))  # moves the statistics
    assert known.changed(ema) == ""
    model.to(memory_format=torch.channels_last)
    model[2].weight.requires_grad_(False)
    with torch.inference_mode():
        assert known.changed(ema) == ""
    for dtype in (torch.float64, torch.bfloat16):
        assert known.changed(EMA(model.to(dtype), decay=0.5)) == ""
    model.append(nn.Conv2d(2, 2, 1))
    assert known.changed(EMA(model, decay=0.5)) == ""
    with torch.no_grad():
        model[0].bias.add_(1)
    assert known.changed(EMA(model, decay=0.5)) == "0.bias"
    assert known.changed(EMA(nn.Linear(1, 1), decay=0.5)) != ""


def test_one_element_of_many_is_noticed():
    model = nn.Embedding(10_000, 4)
    lawa = LAWA(model, interval=1, window=1)
    known = KnownWeights(lawa)
    with torch.no_grad():
        model.weight[1234, 3] += 1e-6
    assert known.changed(lawa) == "weight"


def test_what_merges_and_unmerges_is_known_again_by_more_than_rounding():
    layer = MergingLayer(1 / 3)
    lawa = LAWA(layer, interval=1, window=1)
    known = KnownWeights(lawa)
    before = layer.weight.clone()
    layer.b.data += 0.1234567
    layer.weight.data += 3e-8
    layer.b.data -= 0.1234567
    assert not torch.equal(layer.weight, before)
    assert known.changed(lawa) == ""
    layer.b.data += 1e-3
    assert known.changed(lawa) == "b"


# Lightning.


def test_lightning_weights_loaded_after_fit_are_evaluated_as_they_are(lightning, tmp_path, caplog):
    averaging, module = lightning.averaging(), lightning.Growing()
    best = lightning.AveragedCheckpoint(dirpath=tmp_path, monitor="v", mode="min")
    trainer = lightning.trainer(tmp_path, averaging, best, max_epochs=3)
    trainer.fit(module, lightning.rows(4), lightning.rows(1))
    last = {name: value.clone() for name, value in module.state_dict().items()}
    module.seen.clear()
    trainer.test(module, lightning.rows(1), verbose=False)
    trainer.validate(module, lightning.rows(1), verbose=False)
    assert module.seen == [11.5, 11.5]  # of 11 and 12
    assert "is not what training left" not in caplog.text
    module.seen.clear()

    module.load_state_dict(torch.load(best.best_model_path, weights_only=True)["state_dict"])
    trainer.test(module, lightning.rows(1), verbose=False)
    assert "w is not what training left: the weights are used as they are, not averaged" in caplog.text
    trainer.test(module, lightning.rows(1), ckpt_path=best.best_model_path, verbose=False)
    trainer.predict(module, lightning.rows(1))
    assert module.seen == [3.5, 3.5, 3.5]  # of 3 and 4, after the first epoch
    with averaging.averaged() as ready:
        assert not ready
        assert module.w.item() == 3.5
    assert averaging.state_dict() == {}

    module.load_state_dict(last)
    trainer.test(module, lightning.rows(1), verbose=False)
    assert module.seen[-1] == 11.5
    assert averaging.state_dict()


def test_lightning_a_checkpoint_with_a_state_brings_its_average_which_stays_with_its_weights(lightning, tmp_path):
    averaging, module = lightning.averaging(), lightning.Growing()
    saving = lightning.ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1)
    trainer = lightning.trainer(tmp_path, averaging, saving, max_epochs=2)
    trainer.fit(module, lightning.rows(4))
    module.seen.clear()
    trainer.test(module, lightning.rows(1), ckpt_path=tmp_path / "step=4.ckpt", verbose=False)
    trainer.predict(module, lightning.rows(1))
    assert module.seen == [3.5, 3.5]
    again = lightning.trainer(tmp_path, averaging)  # goes on from these weights, and with their average
    again.fit(module, lightning.rows(1))
    assert module.w.item() == 5
    assert averaging.averager.snapshot_steps == [4, 5]


@pytest.mark.parametrize("put_back", [True, False])
def test_lightning_a_fit_with_the_weights_put_back_has_a_new_average(lightning, tmp_path, caplog, put_back):
    averaging, module = lightning.averaging(3), lightning.Growing()
    first = {name: value.clone() for name, value in module.state_dict().items()}
    lightning.trainer(tmp_path, averaging).fit(module, lightning.rows(4))
    if put_back:
        module.load_state_dict(first)
    lightning.trainer(tmp_path, averaging).fit(module, lightning.rows(2))
    with averaging.averaged() as ready:
        assert ready is not put_back
        assert module.w.item() == (2 if put_back else 5)
    assert ("the average begins anew" in caplog.text) is put_back
    lightning.trainer(tmp_path, averaging).fit(module, lightning.rows(1))
    with averaging.averaged() as ready:
        assert module.w.item() == (2 if put_back else 6)


def test_lightning_a_fit_of_another_module_has_an_average_of_its_own(lightning, tmp_path):
    averaging, first, second = lightning.averaging(), lightning.Growing(), lightning.Growing()
    lightning.trainer(tmp_path, averaging).fit(first, lightning.rows(4))
    lightning.trainer(tmp_path, averaging).fit(second, lightning.rows(6))
    assert averaging.averager.snapshot_steps == [5, 6]
    with averaging.averaged():
        assert (first.w.item(), second.w.item()) == (4, 5.5)


def test_lightning_an_interrupted_fit_leaves_its_own_weights(lightning, tmp_path):
    averaging, module = lightning.averaging(), lightning.Growing(fails_at=6)
    trainer = lightning.trainer(tmp_path, averaging, max_epochs=3)
    with pytest.raises(ArithmeticError):
        trainer.fit(module, lightning.rows(4))
    assert not trainer.optimizers[0]._optimizer_step_post_hooks
    trainer.test(module, lightning.rows(1), verbose=False)
    assert module.seen[-1] == 5.5
    nn.init.zeros_(module.w)
    trainer.test(module, lightning.rows(1), verbose=False)
    assert module.seen[-1] == 0


def test_lightning_training_goes_on_from_the_raw_weights_of_lightnings_own_checkpoint(lightning, tmp_path, caplog):
    from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging
    from torch.optim.swa_utils import get_ema_avg_fn

    for own in (EMAWeightAveraging(decay=0.5), WeightAveraging(avg_fn=get_ema_avg_fn(0.5))):
        folder = tmp_path / type(own).__name__
        saving = lightning.ModelCheckpoint(folder, filename="own")
        lightning.trainer(folder, own, saving).fit(lightning.Growing(), lightning.rows(4))
        module, averaging = lightning.Growing(), lightning.averaging()
        trainer = lightning.trainer(folder, averaging, max_epochs=2, max_steps=5)
        trainer.fit(module, lightning.rows(4), ckpt_path=folder / "own.ckpt")
        assert module.w.item() == 5
        assert averaging.averager.snapshot_steps == [5]
        assert "Lightning's own WeightAveraging: training goes on from its raw weights" in caplog.text
        average = torch.load(folder / "own.ckpt", weights_only=True)["state_dict"]["w"].item()
        assert average < 4
        trainer.test(module, lightning.rows(1), ckpt_path=folder / "own.ckpt", verbose=False)
        assert module.seen[-1] == average


def test_lightning_goes_on_with_new_settings_where_asked(lightning, tmp_path):
    saving = lightning.ModelCheckpoint(tmp_path, filename="x")
    lightning.trainer(tmp_path, lightning.averaging(2), saving).fit(lightning.Growing(), lightning.rows(4))
    for what in ("fit", "test"):
        run = getattr(lightning.trainer(tmp_path, lightning.averaging(3), max_epochs=2), what)
        with pytest.raises(ValueError, match='give settings="new" to load_state_dict, or to the WeightAveraging of a'):
            run(lightning.Growing(), lightning.rows(4), ckpt_path=tmp_path / "x.ckpt")
    module, averaging = lightning.Growing(), lightning.averaging(3, settings="new")
    trainer = lightning.trainer(tmp_path, averaging, max_epochs=2, max_steps=5)
    trainer.fit(module, lightning.rows(4), ckpt_path=tmp_path / "x.ckpt")
    assert averaging.averager.snapshot_steps == [3, 4, 5]


# Hugging Face.


def test_hugging_face_weights_loaded_after_training_are_evaluated_as_they_are(hugging_face, tmp_path, caplog):
    trainer = hugging_face.trainer(tmp_path, save_strategy="steps", save_steps=4, max_steps=12)
    averaging = hugging_face.averaging().attach(trainer)
    trainer.train()
    assert [trainer.evaluate()["eval_loss"], trainer.evaluate()["eval_loss"]] == [-11.5, -11.5]
    assert "is not what training left" not in caplog.text
    trainer._load_from_checkpoint(str(tmp_path / "checkpoint-4"))
    assert trainer.evaluate()["eval_loss"] == -4
    assert trainer.predict(trainer.eval_dataset).metrics["test_loss"] == -4
    assert "w is not what training left: the weights are used as they are, not averaged" in caplog.text
    with pytest.raises(RuntimeError, match="no average of the model's weights to save"):
        averaging.save_pretrained(tmp_path / "average")
    trainer._load_from_checkpoint(str(tmp_path / "checkpoint-12"))
    assert trainer.evaluate()["eval_loss"] == -11.5


@pytest.mark.parametrize("put_back", [True, False])
def test_hugging_face_a_run_with_the_weights_put_back_has_a_new_average(hugging_face, tmp_path, caplog, put_back):
    trainer = hugging_face.trainer(tmp_path, max_steps=4)
    averaging = hugging_face.averaging(3).attach(trainer)
    trainer.train()
    if put_back:
        nn.init.zeros_(trainer.model.w)
    trainer.args.max_steps = 2
    trainer.train()
    with averaging.averaged() as ready:
        assert ready is not put_back
        assert trainer.model.w.item() == (2 if put_back else 5)
    assert ("the average begins anew" in caplog.text) is put_back


def test_hugging_face_an_interrupted_run_leaves_its_own_weights(hugging_face, tmp_path):
    trainer = hugging_face.trainer(tmp_path, max_steps=12)
    hugging_face.averaging().attach(trainer)
    hugging_face.failing_at(trainer, 6)
    with pytest.raises(ArithmeticError):
        trainer.train()
    assert trainer.evaluate()["eval_loss"] == -5.5


def test_hugging_face_the_best_model_without_a_state_has_no_average(hugging_face, tmp_path, caplog, monkeypatch):
    settings = {"save_strategy": "steps", "save_steps": 4, "eval_strategy": "steps", "eval_steps": 4, "max_steps": 8}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}  # the first
    for has_state in (True, False):
        trainer = hugging_face.trainer(tmp_path / str(has_state), **settings, **best)
        hugging_face.averaging().attach(trainer)
        if not has_state:
            monkeypatch.setattr("weight_averaging.trainers.transformers.save_state", lambda *arguments: None)
        trainer.train()
        assert trainer.model.w.item() == 4
        assert trainer.evaluate()["eval_loss"] == (-3.5 if has_state else -4)
    assert "there is no average of the best model" in caplog.text


def test_hugging_face_a_search_saves_the_state_where_its_checkpoints_are(hugging_face, tmp_path):
    """As `hyperparameter_search` has it: a folder for each run, and models made anew."""
    first = hugging_face.trainer(tmp_path, save_strategy="steps", save_steps=4, learning_rate=100.0)
    hugging_face.averaging().attach(first)
    first.train()
    trainer = hugging_face.trainer(tmp_path, save_strategy="steps", save_steps=4, search=True)
    hugging_face.averaging().attach(trainer)
    for name in ("run-0", "run-1"):
        trainer._get_output_dir = lambda trial, name=name: str(tmp_path / name)
        trainer.train()
        assert hugging_face.held(tmp_path / name / "checkpoint-4") == [3, 4]
    assert hugging_face.held(tmp_path / "checkpoint-4") == [300, 400]


@pytest.mark.parametrize("event", ["on_step_begin", "on_step_end", "on_pre_optimizer_step"])
def test_hugging_face_a_checkpoint_that_a_signal_asks_for_has_the_state(hugging_face, tmp_path, event):
    pytest.importorskip("transformers.trainer_jit_checkpoint")
    trainer = hugging_face.trainer(tmp_path, max_steps=8, enable_jit_checkpoint=True)
    hugging_face.averaging(4).attach(trainer)
    hugging_face.signal_at(trainer, event, 5)
    trainer.train()
    folder = tmp_path / "checkpoint-5"
    assert hugging_face.held(folder) == [2, 3, 4, 5]
    again = hugging_face.trainer(tmp_path, max_steps=8)
    averaging = hugging_face.averaging(4).attach(again)
    again.train(resume_from_checkpoint=str(folder))
    assert averaging.averager.snapshot_steps == [5, 6, 7, 8]
    with averaging.averaged():
        assert again.model.w.item() == 6.5


def test_hugging_face_goes_on_with_new_settings_where_asked(hugging_face, tmp_path, caplog):
    first = hugging_face.trainer(tmp_path, save_strategy="steps", save_steps=4)
    hugging_face.averaging(2).attach(first)
    first.train()
    refused = hugging_face.trainer(tmp_path, max_steps=5)
    hugging_face.averaging(3).attach(refused)
    with pytest.raises(ValueError, match="or to the WeightAveraging of a trainer"):
        refused.train(resume_from_checkpoint=True)
    trainer = hugging_face.trainer(tmp_path, max_steps=5)
    averaging = hugging_face.averaging(3, settings="new").attach(trainer)
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint=True)
    assert averaging.averager.snapshot_steps == [3, 4, 5]


def test_an_embedding_that_a_pass_shortens_is_known_again():
    model = nn.ModuleList([nn.Linear(1, 1), nn.Embedding(1, 1, max_norm=1.0)])
    averager = LAWA(model, interval=1, window=1)
    nn.init.constant_(model[1].weight, 2.0)
    averager.update(1)
    left = KnownWeights(averager)
    model[1](torch.zeros(1, dtype=torch.long))
    assert model[1].weight.item() == pytest.approx(1.0)
    assert left.changed(averager) == ""
    nn.init.constant_(model[0].weight, 3.0)
    assert left.changed(averager) == "0.weight"

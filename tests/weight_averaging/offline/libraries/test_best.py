"""The best checkpoints by the metric that a library's own saver wrote down."""

import argparse
import copy

import pytest
import torch
from torch import nn

from tests.support.forms import command, is_mean

pytestmark = pytest.mark.trainers

SCORES = [0.3, 0.9, 0.1, 0.7]


def changed(model: nn.Module) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return copy.deepcopy(model.state_dict())


def test_timm(tmp_path, capsys):
    timm = pytest.importorskip("timm")
    from timm.utils import CheckpointSaver

    model = timm.create_model("test_vit", num_classes=3)
    (tmp_path / "run").mkdir()
    saver = CheckpointSaver(
        model, torch.optim.SGD(model.parameters(), 0.1), argparse.Namespace(model="test_vit"),
        checkpoint_dir=str(tmp_path / "run"), max_history=9,
    )  # fmt: skip
    states = []
    for epoch, score in enumerate(SCORES):
        states.append(changed(model))
        saver.save_checkpoint(epoch, metric=score)
    flags = ("--best=2", "--metric=metric", "--allow-class=argparse.Namespace", f"--out={tmp_path / 'best.pth.tar'}")
    said = command(capsys, "average", tmp_path / "run", *flags)
    assert "whether lower or higher values of metric are better is not known" in said
    said = command(capsys, "average", tmp_path / "run", *flags, "--mode=max")
    assert "metric is metric in it; higher is better, as asked for" in said
    assert "epochs 2 (0.9), 4 (0.7)" in said
    loaded = timm.create_model("test_vit", num_classes=3, checkpoint_path=str(tmp_path / "best.pth.tar"))
    is_mean(loaded.state_dict(), [states[1], states[3]])


@pytest.mark.parametrize("prefix", ["", "best"])
def test_ignite(tmp_path, capsys, prefix):
    """The score is in the name alone, and its users call such files best."""
    pytest.importorskip("ignite")
    from ignite.engine import Engine, Events
    from ignite.handlers import Checkpoint, DiskSaver

    model, states = nn.Linear(3, 2), []
    trainer = Engine(lambda engine, batch: states.append(changed(model)))
    saver = Checkpoint(
        {"model": model}, DiskSaver(str(tmp_path / "run")), n_saved=None, filename_prefix=prefix, score_name="val_acc",
        score_function=lambda engine: SCORES[engine.state.epoch - 1],
        global_step_transform=lambda engine, event: engine.state.epoch,
    )  # fmt: skip
    trainer.add_event_handler(Events.EPOCH_COMPLETED, saver)
    trainer.run([0], max_epochs=4)
    out = tmp_path / "average.pt"
    said = command(capsys, "average", tmp_path / "run", "--best=2", "--metric=val_acc", f"--out={out}")
    assert "val_acc is the number after 'val_acc' in its name; higher is better, as its name says" in said
    assert "steps 2 (0.9), 4 (0.7)" in said
    Checkpoint.load_objects({"model": model}, torch.load(out))
    is_mean(model.state_dict(), [states[1], states[3]])

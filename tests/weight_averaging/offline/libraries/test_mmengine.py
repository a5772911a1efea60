"""Checkpoints that mmengine's Runner saves (OpenMMLab): numpy arrays in their message hub."""

import pytest
import torch

from tests.support.forms import command, is_mean

mmengine = pytest.importorskip("mmengine")
runner = pytest.importorskip("mmengine.runner", exc_type=ImportError)
pytestmark = pytest.mark.trainers
# The buffers of logged numbers; the others are methods of theirs, by name.
ALLOWED = ("--allow-class", "mmengine.logging.history_buffer.HistoryBuffer")


def train(folder, *hooks) -> None:
    from mmengine.model import BaseModel

    class Model(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))

        def forward(self, inputs, mode="tensor"):
            return {"loss": self.net(inputs).square().mean()}

    torch.manual_seed(0)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(16, 3)), batch_size=4)
    runner.Runner(
        Model(), str(folder), train_dataloader=loader,
        train_cfg={"by_epoch": True, "max_epochs": 3}, optim_wrapper={"optimizer": {"type": "Adam", "lr": 0.05}},
        default_hooks={"checkpoint": {"type": "CheckpointHook", "interval": 1}}, custom_hooks=list(hooks),
        experiment_name=folder.name, log_level="ERROR",
    ).train()  # fmt: skip


@pytest.mark.parametrize("hooks", [(), ({"type": "EMAHook"},)], ids=["plain", "ema"])
def test_epochs_of_a_runner(tmp_path, capsys, monkeypatch, hooks):
    from mmengine.runner import load_checkpoint

    train(tmp_path / "run", *hooks)
    capsys.readouterr()
    out = tmp_path / "average.pth"
    said = command(capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={out}", *ALLOWED)
    assert "made of 2 snapshots, epochs 2, 3" in said
    saved = [torch.load(tmp_path / "run" / f"epoch_{epoch}.pth", weights_only=False) for epoch in (2, 3)]
    model = torch.nn.Module()
    model.net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # without which mmengine 0.10 loads no file of its own
    load_checkpoint(model, str(out), strict=True)
    is_mean(model.state_dict(), [one["state_dict"] for one in saved])
    assert ("averaged are the EMAs of mmengine's EMAHook (state_dict)" in said) == bool(hooks)
    if hooks:  # which has the raw weights under this key when it saves
        is_mean(torch.load(out, weights_only=False)["ema_state_dict"], [one["ema_state_dict"] for one in saved])
        command(capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={out}.pt", *ALLOWED,
                "--key=ema_state_dict")  # fmt: skip
        is_mean(torch.load(f"{out}.pt"), [one["ema_state_dict"] for one in saved])

"""Folders of torch.distributed.checkpoint that torchtitan and Megatron-core write, averaged and loaded back by them."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.support.forms import command, is_mean
from tests.weight_averaging.offline.libraries.test_of_pytorch import kept, net, step

pytestmark = pytest.mark.trainers


@pytest.fixture
def group():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_torchtitan(tmp_path, capsys, group):
    dcp = pytest.importorskip("torchtitan.components.checkpointer.dcp", exc_type=ImportError)
    from torchtitan.components.optimizer import OptimizersContainer, ParamGroupConfig

    def manager(folder, model, **config):
        every = ParamGroupConfig(pattern=r".*", optimizer_name="AdamW", optimizer_kwargs={"lr": 0.05})
        optimizers = OptimizersContainer(
            OptimizersContainer.Config(param_groups=[every], implementation="foreach"), model_parts=[model]
        )
        made = dcp.CheckpointManager(
            dcp.CheckpointManager.Config(enable=True, folder=str(folder), interval=1, keep_latest_k=0, **config),
            dataloader=None, model_parts=[model], optimizers=optimizers, lr_schedulers=nn.Module(),
            states={"train_state": SimpleStateful()}, sd_adapter=None,
        )  # fmt: skip
        made.states.pop("dataloader")
        return made, optimizers

    model = net()
    saver, optimizers = manager(tmp_path / "run", model)
    states = []
    for number in (1, 2, 3):
        step(model, optimizers, 4, 3)
        saver.save(number)
        states.append(kept(model))
    out = tmp_path / "average" / "step-3"
    said = command(capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={out}")
    assert "made of 2 snapshots, steps 2, 3" in said
    assert "not in the average: " in said
    assert "optimizer" in said.partition("not in the average: ")[2].partition("\n")[0]
    fresh = net()
    loader, _ = manager(tmp_path / "next", fresh, initial_load_path=str(out))
    assert loader.load()
    is_mean(fresh.state_dict(), states[1:])


class SimpleStateful:
    def state_dict(self):
        return {"step": torch.tensor(1), "ntokens_seen": torch.tensor(5)}

    def load_state_dict(self, state):
        self.state = state


def test_megatron_core(tmp_path, capsys, group, monkeypatch):
    """Its `dist_checkpointing` asks for CUDA devices in places, which are stubs here."""
    library = pytest.importorskip("megatron.core.dist_checkpointing", exc_type=ImportError)
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "current_device", lambda: "cpu")
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def sharded(model):
        return {name: library.ShardedTensor.from_rank_offsets(name, value) for name, value in kept(model).items()}

    model = net()
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    states = []
    for number in (100, 200, 300):
        step(model, optimizer, 4, 3)
        folder = tmp_path / "run" / f"iter_{number:07d}"
        folder.mkdir(parents=True)
        library.save({"model": sharded(model), "iteration": number, "args": SimpleNamespace(lr=1)}, str(folder))
        states.append(kept(model))
    out = tmp_path / "average" / "iter_0000300"
    said = command(capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={out}")
    assert "made of 2 snapshots, steps 200, 300" in said, said
    loaded = library.load({"model": sharded(net())}, str(out))["model"]
    is_mean(loaded, states[1:])

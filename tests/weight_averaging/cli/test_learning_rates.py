"""Learning rates in checkpoints, for an average that follows them."""

import functools

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

from tests.weight_averaging.cli.test_command import command
from weight_averaging import Averager
from weight_averaging.averages import FollowsRate
from weight_averaging.offline.reading import Snapshots


def test_an_average_that_follows_the_rate_has_it_from_the_checkpoints(capsys, tmp_path):
    (tmp_path / "run").mkdir()
    model = torch.nn.Linear(1, 1, bias=False)
    optimizer, online = torch.optim.SGD(model.parameters(), lr=1.0), Averager(model, FollowsRate(interval=1))
    for step in range(1, 9):
        optimizer.param_groups[0]["lr"] = 1.0 - step / 10
        torch.nn.init.constant_(model.weight, float(step))
        online.update(step, learning_rate=1.0 - step / 10)
        checkpoint = {"model": model.state_dict(), "optimizers": [optimizer.state_dict()], "step": step}
        torch.save(checkpoint, tmp_path / "run" / f"step_{step}.pt")
    said = command(capsys, "average", tmp_path / "run", "--follows-rate", "share=.15", f"--out={tmp_path / 'x.pt'}")
    assert "x.pt: followsrate as of step 8, made of 8 snapshots" in said
    found = torch.load(tmp_path / "x.pt", weights_only=True)
    assert torch.equal(found["model"]["weight"], online.average_state_dict()["weight"])
    torch.save({"model": model.state_dict()}, tmp_path / "run" / "step_3.pt")
    said = command(capsys, "average", tmp_path / "run", "--follows-rate", "share=.15", f"--out={tmp_path / 'y.pt'}")
    assert "followsrate follows the learning rate, and that of step 3 is not known: it is read from the state" in said
    assert not (tmp_path / "y.pt").exists()


@pytest.mark.parametrize("critic", [0.01, 0.5, torch.tensor(0.5)], ids=str)
def test_of_several_optimizers_it_is_the_largest_rate_as_in_trainers(capsys, tmp_path, critic):
    (tmp_path / "run").mkdir()
    for step in (1, 2, 3, 4):
        states = {"critic": [{"lr": critic, "params": [0]}], "generator": [{"lr": 0.4 / step, "params": [0]}]}
        optimizers = {name: {"state": {}, "param_groups": groups} for name, groups in states.items()}
        checkpoint = {"model": {"w": torch.full((2,), float(step))}, "optimizers": optimizers}
        torch.save(checkpoint, tmp_path / "run" / f"step_{step}.pt")
    command(capsys, "average", tmp_path / "run", "--follows-rate", "share=.5", f"--out={tmp_path / 'x.pt'}")
    rates = [max(float(critic), 0.4 / step) for step in (1, 2, 3, 4)]
    expected = 1.0
    for value, weight in zip((2.0, 3.0, 4.0), FollowsRate(share=0.5).weights(rates), strict=True):
        expected += weight * (value - expected)
    assert torch.load(tmp_path / "x.pt")["model"]["w"][0].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rate", [torch.tensor([0.1, 0.2]), torch.empty((), device="meta"), None, "auto"], ids=str)
def test_a_rate_that_is_no_number_hinders_no_average_that_follows_none(capsys, tmp_path, rate):
    (tmp_path / "run").mkdir()
    for step in (1, 2):
        optimizer = {"state": {}, "param_groups": [{"lr": rate, "params": [0]}]}
        checkpoint = {"model": {"w": torch.full((2,), float(step))}, "optimizer": optimizer}
        torch.save(checkpoint, tmp_path / "run" / f"step_{step}.pt")
    command(capsys, "average", tmp_path / "run", "--lawa", "window=2", f"--out={tmp_path / 'x.pt'}")
    assert torch.load(tmp_path / "x.pt")["model"]["w"].tolist() == [1.5, 1.5]
    said = command(capsys, "average", tmp_path / "run", "--follows-rate", "share=.5", f"--out={tmp_path / 'y.pt'}")
    assert "follows the learning rate, and that of step 1 is not known" in said


def run(folder, save) -> torch.Tensor:
    """Six updates at a falling rate, with a checkpoint after each; the average of the weights that was made online."""
    model = torch.nn.Linear(2, 1)
    groups = [{"params": [model.weight], "lr": 1.0}, {"params": [model.bias], "lr": 0.2}]
    optimizer, online = torch.optim.SGD(groups, momentum=0.9), Averager(model, FollowsRate(share=0.5, interval=1))
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 6)
    for step in range(1, 7):
        optimizer.zero_grad()
        model(torch.tensor([[1.0, step]])).square().sum().backward()
        optimizer.step()
        scheduler.step()
        online.update(step, learning_rate=max(scheduler.get_last_lr()))
        save(folder / f"step-{step}", model, optimizer, scheduler)
    return online.average_state_dict()["weight"]


def plain(path, model, optimizer, scheduler) -> None:
    dcp.save({"model": model.state_dict(), "optim": optimizer.state_dict()}, checkpoint_id=path)


def by_name(path, model, optimizer, scheduler, flat: bool = False) -> None:
    states = get_state_dict(model, optimizer, options=StateDictOptions(flatten_optimizer_state_dict=flat))
    dcp.save({"app": dict(zip(("model", "optim"), states, strict=True))}, checkpoint_id=path)


def scheduler_alone(path, model, optimizer, scheduler) -> None:
    dcp.save({"model": model.state_dict(), "lr_scheduler": scheduler.state_dict()}, checkpoint_id=path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("save", [plain, by_name, functools.partial(by_name, flat=True), scheduler_alone])
def test_folders_of_torch_distributed_checkpoint_know_them(capsys, tmp_path, save):
    online = run(tmp_path / "run", save)
    assert Snapshots(tmp_path / "run").learning_rates == pytest.approx({n: 1 - 0.15 * n for n in range(1, 7)})
    out = tmp_path / "average"
    said = command(capsys, "average", tmp_path / "run", "--follows-rate", "share=.5", f"--out={out}")
    assert "made of 6 snapshots" in said
    found = {"model": {"weight": torch.empty_like(online)}}
    found = found if save in (plain, scheduler_alone) else {"app": found}
    dcp.load(found, checkpoint_id=out)
    assert torch.equal(found.get("app", found)["model"]["weight"], online)  # bit for bit


class Runs:
    """Would leave a file where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.filterwarnings("ignore")
def test_a_rate_in_such_a_folder_that_would_run_code_is_refused(capsys, tmp_path):
    bad = tmp_path / "has_run"
    for step in (1, 2):
        groups = [{"lr": Runs(str(bad)) if step == 2 else 0.1, "params": [0]}]
        state = {"model": {"w": torch.zeros(2)}, "optim": {"state": {}, "param_groups": groups}}
        dcp.save(state, checkpoint_id=tmp_path / "run" / f"step-{step}")
    said = command(capsys, "average", tmp_path / "run", "--follows-rate=share=.5", f"--out={tmp_path / 'average'}")
    assert f"error: {tmp_path / 'run' / 'step-2'}/__0_0.distcp: a learning rate in it is damaged or refused" in said
    assert not bad.exists()
    said = command(capsys, "average", tmp_path / "run", "--lawa=window=2", f"--out={tmp_path / 'average'}")
    assert "made of 2 snapshots" in said

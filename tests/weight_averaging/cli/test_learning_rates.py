"""Learning rates in checkpoints, for an average that follows them."""

import pytest
import torch

from tests.weight_averaging.cli.test_command import command
from weight_averaging import Averager
from weight_averaging.averages import FollowsRate


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

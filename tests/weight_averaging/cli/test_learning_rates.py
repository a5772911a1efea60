"""Learning rates in checkpoints, for an average that follows them."""

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

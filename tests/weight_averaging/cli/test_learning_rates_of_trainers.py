"""Learning rates in the checkpoints that trainers write, for an average that follows them: as it is online."""

import json
import pickle
import shutil

import pytest
import torch

from tests.support import reference
from tests.weight_averaging.cli.test_command import command
from weight_averaging import Averager
from weight_averaging.averages import FollowsRate, SnapshotError
from weight_averaging.offline.reading import Snapshots

DESCRIBED = FollowsRate(share=0.5, interval=1)
RATES = {step: 1.0 - step / 8 for step in range(1, 7)}  # after the scheduler's step
pytestmark = pytest.mark.filterwarnings("ignore")


def average(capsys, folder, out) -> tuple[str, torch.Tensor | None]:
    said = command(capsys, "average", folder, "--follows-rate", "share=.5", f"--out={out}")
    if not out.exists():
        return said, None
    from safetensors.torch import load_file

    return said, load_file(out / "model.safetensors")["w"]


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory):
    """A folder of six checkpoints with their optimizers, one of models alone, and the average that was made online."""
    pytest.importorskip("transformers")
    from tests.weight_averaging.trainers import growing_transformers as transformers

    top = tmp_path_factory.mktemp("hugging_face")
    for name, alone in (("whole", False), ("models", True)):
        trainer = transformers.trainer(
            top / name, max_steps=6, save_strategy="steps", save_steps=1, save_only_model=alone,
            logging_strategy="steps", logging_steps=2 if alone else 1,
        )  # fmt: skip
        optimizer = torch.optim.SGD(trainer.model.parameters(), lr=1.0)
        trainer.optimizer, trainer.lr_scheduler = optimizer, torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.25, 6)
        averaging = transformers.WeightAveraging(lambda model: Averager(model, DESCRIBED)).attach(trainer)
        trainer.train()
    return top, averaging.averager.average_state_dict()["w"]


WITHOUT = {
    "as it is": [],
    "no scheduler": ["scheduler.pt"],
    "no optimizer": ["optimizer.pt"],
    "neither": ["scheduler.pt", "optimizer.pt"],
}


@pytest.mark.trainers
@pytest.mark.parametrize("removed", WITHOUT.values(), ids=WITHOUT)
def test_a_hugging_face_trainers_checkpoints_know_them(hugging_face, removed, tmp_path, capsys):
    top, online = hugging_face
    shutil.copytree(top / "whole", tmp_path / "run")
    for step in RATES:
        for name in removed:
            (tmp_path / "run" / f"checkpoint-{step}" / name).unlink()
    said, found = average(capsys, tmp_path / "run", tmp_path / "out")
    assert "made of 6 snapshots" in said
    rates = Snapshots(tmp_path / "run").learning_rates
    if len(removed) < 2:
        assert rates == pytest.approx(RATES)
        assert torch.equal(found, online)  # bit for bit
    else:  # the log's: of the update itself, or of the next one, by the Trainer's release
        log = json.loads((tmp_path / "run" / "checkpoint-6" / "trainer_state.json").read_text())["log_history"]
        assert rates == {entry["step"]: entry["learning_rate"] for entry in log}
        assert list(rates) == list(RATES)
        weights = reference.follows_rate([rates[step] for step in RATES], 0.5)
        values = [sum(RATES[other] + 0.125 for other in range(1, step + 1)) for step in RATES]
        assert found.item() == pytest.approx(weights @ values, rel=1e-6)


@pytest.mark.trainers
def test_a_log_counts_for_the_steps_that_it_has(hugging_face, tmp_path, capsys):
    top, _ = hugging_face
    assert sorted(Snapshots(top / "models").learning_rates) == [2, 4, 6]
    said, found = average(capsys, top / "models", tmp_path / "out")
    assert found is None
    assert "share=0.5 follows the learning rate, and that of step 1 is not known: it is read from" in said
    assert "a Trainer's trainer_state.json where that logs the step itself" in said
    command(capsys, "average", top / "models", "--lawa=window=2", f"--out={tmp_path / 'out'}")
    state = top / "models" / "checkpoint-2" / "trainer_state.json"
    assert [entry["step"] for entry in json.loads(state.read_text())["log_history"]] == [2]


@pytest.mark.trainers
@pytest.mark.parametrize("name", ["scheduler.pt", "optimizer.pt"])
@pytest.mark.parametrize("how", ["runs code", "cut off", "no rate"])
def test_a_file_that_cannot_be_read_is_named_where_no_other_has_them(hugging_face, name, how, tmp_path, capsys):
    top, online = hugging_face
    shutil.copytree(top / "whole", tmp_path / "run")
    folder = tmp_path / "run" / "checkpoint-3"
    if how == "runs code":
        (folder / name).write_bytes(pickle.dumps(print))
    elif how == "cut off":
        (folder / name).write_bytes((folder / name).read_bytes()[:100])
    else:
        torch.save({"last_epoch": 3}, folder / name)
    _, found = average(capsys, tmp_path / "run", tmp_path / "out")
    assert torch.equal(found, online)
    (folder / {"scheduler.pt": "optimizer.pt", "optimizer.pt": "scheduler.pt"}[name]).unlink()
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 3, "log_history": []}))
    said, found = average(capsys, tmp_path / "run", tmp_path / "other")
    assert found is None
    if how == "no rate":
        assert "that of step 3 is not known" in said
    else:
        assert f"checkpoint-3/{name} is " in said
        with pytest.raises(SnapshotError, match=f"checkpoint-3/{name} is (refused|damaged)"):
            Snapshots(tmp_path / "run").learning_rates  # noqa: B018
    said = command(capsys, "average", tmp_path / "run", "--lawa=window=6", f"--out={tmp_path / 'lawa'}")
    assert "made of 6 snapshots" in said


@pytest.mark.trainers
def test_a_folder_of_accelerate_has_the_largest_of_its_optimizers(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    for count in (1, 2):
        made = accelerate.Accelerator(cpu=True)
        models = [torch.nn.Linear(1, 1) for _ in range(count)]
        optimizers = [torch.optim.SGD(model.parameters(), lr=0.5 * number) for number, model in enumerate(models, 1)]
        schedulers = [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5) for optimizer in optimizers]
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
        made.prepare(*models, *optimizers, *schedulers)
        made.save_state(str(tmp_path / f"run{count}" / "step_1"))
        folder = tmp_path / f"run{count}" / "step_1"
        assert Snapshots(tmp_path / f"run{count}").learning_rates == {1: 0.25 * count}
        for file in folder.glob("scheduler*.bin"):
            file.unlink()
        assert Snapshots(tmp_path / f"run{count}").learning_rates == {1: 0.25 * count}
    torch.save({}, folder / "optimizer_1.bin")  # the other one may be the lower
    assert Snapshots(tmp_path / f"run{count}").learning_rates == {}


@pytest.mark.trainers
def test_lightnings_checkpoints_know_them(tmp_path, capsys):
    pytest.importorskip("lightning")
    from tests.weight_averaging.trainers import growing_lightning as lightning

    class Annealed(lightning.Growing):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            parts = [torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.25, 6), constant(optimizer)]
            scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, parts, milestones=[50])
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    every = {"dirpath": tmp_path / "run", "every_n_train_steps": 1, "save_top_k": -1}
    averaging = lightning.WeightAveraging(lambda module: Averager(module, DESCRIBED))
    lightning.trainer(tmp_path, averaging, lightning.ModelCheckpoint(**every)).fit(Annealed(), lightning.rows(6))
    command(capsys, "average", tmp_path / "run", "--follows-rate", "share=.5", f"--out={tmp_path / 'x.ckpt'}")
    found = torch.load(tmp_path / "x.ckpt", weights_only=False)["state_dict"]["w"]
    assert torch.equal(found, averaging.averager.average_state_dict()["w"])
    assert Snapshots(tmp_path / "run").learning_rates == pytest.approx(RATES)
    for path in (tmp_path / "run").iterdir():  # the schedulers alone know them too
        contents = torch.load(path, weights_only=False)
        del contents["optimizer_states"]
        torch.save(contents, path)
    assert Snapshots(tmp_path / "run").learning_rates == pytest.approx(RATES)


def constant(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """One whose own last rate is another than that of the optimizer."""
    made = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    made._last_lr = [7.0]
    return made

"""The callback for Lightning, with Lightning itself."""

import logging
import os
import subprocess
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from tests.support import ROOT

pytest.importorskip("lightning")
import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision

from tests.support import reference
from tests.support.warm_python import python
from weight_averaging.torch import EMA, LAWA
from weight_averaging.trainers.lightning import AveragedCheckpoint, WeightAveraging

pytestmark = pytest.mark.filterwarnings("ignore")


def batches(count: int = 12):
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(3, generator=generator), torch.randn(2, generator=generator)) for _ in range(2 * count)]
    return torch.utils.data.DataLoader(data, batch_size=2)


def flat(module: nn.Module) -> np.ndarray:
    tensors = [t.detach() for t in module.state_dict().values() if t.is_floating_point()]
    return torch.cat([t.double().reshape(-1) for t in tensors]).numpy()


class Module(pl.LightningModule):
    """Notes the weights that each evaluation sees; `evaluated` has (global_step, weights)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        self.evaluated: list[tuple[int, np.ndarray]] = []
        self.sees: list[np.ndarray] = []

    def training_step(self, batch, _):
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        if batch_idx == 0:
            self.evaluated.append((self.trainer.global_step, flat(self)))
        self.log("loss", nn.functional.mse_loss(self.net(batch[0]), batch[1]))

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch, _):
        return flat(self)

    def on_validation_epoch_end(self):  # users look at samples here: still of the average
        np.testing.assert_array_equal(flat(self), self.evaluated[-1][1])

    def train_dataloader(self):
        return batches()

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Recorder(Callback):
    """The weights after every optimizer step that took place."""

    def __init__(self) -> None:
        self.snapshots: list[np.ndarray] = []

    def on_train_start(self, trainer, pl_module):
        def stepped(*_):
            self.snapshots.append(None)

        trainer.optimizers[0].register_step_post_hook(stepped)

    def on_train_batch_end(self, trainer, pl_module, *_):
        if self.snapshots and self.snapshots[-1] is None:
            self.snapshots[-1] = flat(pl_module)


def trainer_of(folder, *callbacks, **settings) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    plain = {} if any(isinstance(c, ModelCheckpoint) for c in callbacks) else {"enable_checkpointing": False}
    return pl.Trainer(
        default_root_dir=folder, callbacks=list(callbacks), **{**quiet, "max_epochs": 2, **plain, **settings}
    )


lawa = partial(LAWA, interval=2, window=3)


@pytest.mark.parametrize(("accumulate", "check"), [(1, 1.0), (1, 5), (3, 4)])
def test_evaluations_see_the_average_after_optimizer_steps_and_training_never_does(tmp_path, accumulate, check):
    module, recorder, averaging = Module(), Recorder(), WeightAveraging(lawa)
    plain, plain_recorder = Module(), Recorder()
    settings = {"accumulate_grad_batches": accumulate, "val_check_interval": check}
    trainer_of(tmp_path, recorder, averaging, **settings).fit(module)
    trainer_of(tmp_path, plain_recorder, **settings).fit(plain)
    assert len(recorder.snapshots) == 24 // accumulate == averaging.averager.step
    for one, other in zip(recorder.snapshots, plain_recorder.snapshots, strict=True):  # averaging or not
        np.testing.assert_array_equal(one, other)
    seen = [(step, weights) for step, weights in module.evaluated if step]  # without the sanity check
    assert seen
    for step, weights in seen:
        expected = reference.lawa(recorder.snapshots[1:step:2], 3)
        if expected is not None:  # else the raw weights, with the statistics of micro-batches since
            np.testing.assert_allclose(weights, expected, atol=1e-6)
    np.testing.assert_array_equal(flat(module), recorder.snapshots[-1])
    assert seen[-1][0] >= 6
    assert not np.array_equal(seen[-1][1], recorder.snapshots[seen[-1][0] - 1])


def test_test_and_predict_see_the_average_and_leave_the_raw_weights(tmp_path):
    module, averaging = Module(), WeightAveraging(partial(EMA, decay=0.8))
    trainer = trainer_of(tmp_path, averaging)
    trainer.fit(module)
    assert not trainer.optimizers[0]._optimizer_step_post_hooks  # as they were
    raw = flat(module)
    with averaging.averaged():
        average = flat(module)
    assert not np.array_equal(raw, average)
    module.evaluated.clear()
    trainer.test(module, verbose=False)
    np.testing.assert_array_equal(module.evaluated[-1][1], average)
    module.evaluated.clear()
    trainer.validate(module, verbose=False)
    np.testing.assert_array_equal(module.evaluated[-1][1], average)
    np.testing.assert_array_equal(trainer.predict(module)[0], average)
    np.testing.assert_array_equal(flat(module), raw)


def test_a_run_goes_on_bit_for_bit_and_its_checkpoint_is_tested_on_the_average(tmp_path):
    def checkpoint(name):
        return ModelCheckpoint(tmp_path / name, every_n_train_steps=12, save_top_k=-1, filename="{step}")

    whole, averaging = Module(), WeightAveraging(lawa)
    trainer_of(tmp_path, averaging, checkpoint("whole"), val_check_interval=4).fit(whole)
    halfway = tmp_path / "whole" / "step=12.ckpt"

    again, restored = Module(), WeightAveraging(lawa)
    trainer_of(tmp_path, restored, checkpoint("again"), val_check_interval=4).fit(again, ckpt_path=halfway)
    np.testing.assert_array_equal(flat(again), flat(whole))
    one, other = averaging.averager.state_dict(), restored.averager.state_dict()
    assert one["step"] == other["step"] == 24
    for mine, theirs in zip(one["tracks"][0]["vectors"], other["tracks"][0]["vectors"], strict=True):
        assert torch.equal(mine, theirs)

    tested, fresh = Module(), WeightAveraging(lawa)
    trainer_of(tmp_path, fresh).test(tested, ckpt_path=halfway, verbose=False)
    saved = torch.load(halfway, weights_only=True)  # nothing in it can run code
    average = torch.stack(saved["callbacks"]["WeightAveraging"]["tracks"][0]["vectors"]).mean(0).double()
    np.testing.assert_allclose(np.sort(tested.evaluated[-1][1]), np.sort(average.numpy()), atol=1e-6)
    assert fresh.averager.snapshot_steps == [8, 10, 12]


def test_checkpoints_of_the_average(tmp_path, caplog):
    """By the metric of the average, of weights only; tested as they are, whatever average the callback has."""
    best = AveragedCheckpoint(dirpath=tmp_path, monitor="loss", filename="best", enable_version_counter=False)
    module, averaging = Module(), WeightAveraging(lawa)
    trainer = trainer_of(tmp_path, averaging, best, val_check_interval=4)
    trainer.fit(module)
    step = torch.load(tmp_path / "best.ckpt", weights_only=True)["global_step"]
    seen = dict(module.evaluated)
    np.testing.assert_array_equal(flat(Module.load_from_checkpoint(tmp_path / "best.ckpt")), seen[step])
    module.evaluated.clear()
    with caplog.at_level(logging.INFO, logger="weight_averaging"):
        trainer.test(module, ckpt_path=tmp_path / "best.ckpt", verbose=False)
    np.testing.assert_array_equal(module.evaluated[-1][1], seen[step])
    assert "its weights are used as they are" in caplog.text
    with pytest.raises(RuntimeError, match="needs a WeightAveraging"):
        trainer_of(tmp_path, AveragedCheckpoint(dirpath=tmp_path)).fit(Module())


def test_a_run_without_a_state_begins_a_new_average_and_says_so(tmp_path, caplog):
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=11, filename="{step}")
    trainer_of(tmp_path, saving).fit(Module())
    averaging = WeightAveraging(lawa)
    trainer_of(tmp_path, averaging).fit(Module(), ckpt_path=tmp_path / "step=22.ckpt")
    assert "has no state of WeightAveraging: the average begins anew" in caplog.text
    assert (averaging.averager.step, averaging.averager.snapshot_steps) == (24, [24])


def test_an_error_in_an_evaluation_leaves_the_raw_weights(tmp_path):
    class Failing(Module):
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            if self.trainer.global_step == 12:
                raise ArithmeticError

    module, recorder, averaging = Failing(), Recorder(), WeightAveraging(lawa)
    with pytest.raises(ArithmeticError):
        trainer_of(tmp_path, recorder, averaging).fit(module)
    assert not averaging.averager.swapped
    np.testing.assert_array_equal(flat(module), recorder.snapshots[-1])
    assert not np.array_equal(module.evaluated[-1][1], recorder.snapshots[-1])


def test_skipped_steps_of_a_scaler_are_no_updates(tmp_path):
    class Overflowing(Module):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * float("inf") if batch_idx % 3 == 0 else loss

    module, recorder, averaging = Overflowing(), Recorder(), WeightAveraging(partial(EMA, decay=0.5))
    amp = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=4.0))
    trainer = trainer_of(tmp_path, recorder, averaging, plugins=[amp])
    trainer.fit(module)
    assert trainer.global_step == 24  # Lightning counts what was skipped
    assert averaging.averager.step == len(recorder.snapshots) == 16
    with averaging.averaged():
        np.testing.assert_allclose(flat(module), reference.ema(recorder.snapshots, 0.5), atol=1e-6)


def test_several_optimizers_are_one_update_a_batch_and_a_part_may_be_averaged(tmp_path):
    class Gan(Module):
        def __init__(self):
            super().__init__()
            self.critic = nn.Linear(2, 1)
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            generator, critic = self.optimizers()
            loss = self.critic(self.net(batch[0])).mean()
            for optimizer, sign in ((critic, -1), (generator, 1)) if batch_idx % 2 == 0 else ((critic, -1),):
                optimizer.zero_grad()
                self.manual_backward(sign * loss, retain_graph=True)
            for optimizer in (critic, generator) if batch_idx % 2 == 0 else (critic,):
                optimizer.step()

        def configure_optimizers(self):
            return torch.optim.SGD(self.net.parameters(), 0.01), torch.optim.SGD(self.critic.parameters(), 0.01)

    module, averaging = Gan(), WeightAveraging(lambda m: LAWA(m.net, interval=3, window=2))
    trainer = trainer_of(tmp_path, averaging)
    trainer.fit(module)
    assert trainer.global_step == 36
    assert averaging.averager.snapshot_steps == [21, 24]
    assert averaging.averager.average_state_dict().keys() == module.net.state_dict().keys()


def test_what_cannot_be_averaged_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"needs WeightAveraging.* forward="):
        trainer_of(tmp_path, WeightAveraging(partial(EMA, decay=0.5, buffers="recompute"))).fit(Module())
    with pytest.raises(RuntimeError, match="no averager before training"), WeightAveraging(lawa).averaged():
        pass


@pytest.mark.parametrize(
    "strategies",
    [
        ["ddp", "fsdp2"],
        ["tensor"],
        *(pytest.param([strategy], marks=pytest.mark.heavy) for strategy in ("spawn", "fsdp2_tensor")),
    ],
    ids="_".join,
)
def test_two_processes(tmp_path, strategies):
    ranks = 4 if "fsdp2_tensor" in strategies else 2
    launch = (
        [] if "spawn" in strategies else ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    )
    command = [python(), *launch, "-m", "tests.processes.lightning_ranks", str(tmp_path), *strategies]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    assert "as expected" in done.stdout

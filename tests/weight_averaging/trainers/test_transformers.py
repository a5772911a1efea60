"""The callback for Hugging Face's Trainer, and the loop for accelerate, with the libraries themselves."""

import logging
import os
import subprocess
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed.fsdp

from tests.support import ROOT

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from tests.support import reference
from tests.support.warm_python import python
from weight_averaging.torch import EMA, LAWA
from weight_averaging.trainers.transformers import WeightAveraging

lawa = partial(LAWA, interval=2, window=3)


def tiny(seed: int = 0) -> GPT2LMHeadModel:
    """With tied embeddings, and dropout, so that random numbers count."""
    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2))


def data(count: int = 24) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(11, (6,), generator=generator) for _ in range(count)]
    return [{"input_ids": row, "labels": row} for row in rows]


def flat(model: torch.nn.Module) -> np.ndarray:
    return torch.cat([p.detach().double().reshape(-1) for p in model.parameters()]).numpy()


class Seen(Trainer):
    """Notes the weights that each evaluation sees: (global_step, weights)."""

    evaluated: list

    def prediction_step(self, model, *args, **kwargs):
        self.evaluated.append((self.state.global_step, flat(model)))
        return super().prediction_step(model, *args, **kwargs)


class Recorder(TrainerCallback):
    def __init__(self):
        self.snapshots = []

    def on_optimizer_step(self, args, state, control, model, **_):
        self.snapshots.append(flat(model))


def trainer_of(folder, *callbacks, model=None, **settings) -> Seen:
    given = {
        "max_steps": 12, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 24, "learning_rate": 0.05,
        "eval_strategy": "steps", "eval_steps": 4, "save_steps": 4, "logging_strategy": "no", "report_to": [],
        "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False, **settings,
    }  # fmt: skip
    arguments = TrainingArguments(str(folder), **given)
    trainer = Seen(model or tiny(), arguments, train_dataset=data(), eval_dataset=data(), callbacks=list(callbacks))
    trainer.evaluated = []
    return trainer


@pytest.mark.parametrize("accumulate", [1, 2])
def test_evaluations_see_the_average_and_training_never_does(tmp_path, accumulate):
    recorder, plain_recorder = Recorder(), Recorder()
    trainer = trainer_of(tmp_path / "a", recorder, gradient_accumulation_steps=accumulate, eval_on_start=True)
    averaging = WeightAveraging(lawa).attach(trainer)
    trainer.train()
    plain = trainer_of(tmp_path / "b", plain_recorder, gradient_accumulation_steps=accumulate, eval_on_start=True)
    plain.train()
    assert len(recorder.snapshots) == 12 == averaging.averager.step
    np.testing.assert_array_equal(recorder.snapshots, plain_recorder.snapshots)
    assert [step for step, _ in trainer.evaluated] == [0, 4, 8, 12]
    for step, weights in trainer.evaluated[2:]:
        np.testing.assert_allclose(weights, reference.lawa(recorder.snapshots[1:step:2], 3), atol=1e-6)
    last = trainer.evaluated[-1][1]
    trainer.evaluate({"one": data(6), "another": data(4)})  # each of several data sets
    trainer.predict(data(4))
    assert len(trainer.evaluated) == 7
    for _, weights in trainer.evaluated[-3:]:
        np.testing.assert_array_equal(weights, last)
    np.testing.assert_array_equal(flat(trainer.model), recorder.snapshots[-1])


def test_a_run_goes_on_bit_for_bit(tmp_path):
    whole = trainer_of(tmp_path)
    averaging = WeightAveraging(lawa).attach(whole)
    whole.train()
    for resume in (str(tmp_path / "checkpoint-8"), True):
        if resume is True:
            (tmp_path / "checkpoint-12").rename(tmp_path / "later")
        again = trainer_of(tmp_path, model=tiny(seed=5))
        restored = WeightAveraging(lawa).attach(again)
        again.train(resume_from_checkpoint=resume)
        np.testing.assert_array_equal(flat(again.model), flat(whole.model))
        one, other = averaging.averager.state_dict(), restored.averager.state_dict()
        assert one["step"] == other["step"] == 12
        for mine, theirs in zip(one["tracks"][0]["vectors"], other["tracks"][0]["vectors"], strict=True):
            assert torch.equal(mine, theirs)
    raw = GPT2LMHeadModel.from_pretrained(tmp_path / "checkpoint-8")  # what another program makes of it
    assert not np.array_equal(flat(raw), dict(whole.evaluated)[8])


def test_the_average_is_saved_as_a_model_of_its_own(tmp_path):
    trainer = trainer_of(tmp_path)
    averaging = WeightAveraging(partial(EMA, decay=0.6)).attach(trainer)
    with pytest.raises(RuntimeError, match="no averager before training"):
        averaging.save_pretrained(tmp_path / "early")
    trainer.train()
    raw = flat(trainer.model)
    averaging.save_pretrained(tmp_path / "average")
    assert (tmp_path / "average" / "model.safetensors").is_file()
    loaded = GPT2LMHeadModel.from_pretrained(tmp_path / "average")
    np.testing.assert_array_equal(flat(loaded), trainer.evaluated[-1][1])
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    np.testing.assert_array_equal(flat(trainer.model), raw)


def test_the_best_model_is_that_of_the_best_average(tmp_path):
    trainer = trainer_of(tmp_path, load_best_model_at_end=True, save_total_limit=1, greater_is_better=True)
    averaging = WeightAveraging(partial(EMA, decay=0.6)).attach(trainer)
    trainer.train()
    losses = {row["step"]: row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row}
    best = max(losses, key=losses.get)  # so that it is not the last one
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    assert averaging.averager.step == best
    assert best < 12
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[best], rel=1e-6)
    np.testing.assert_array_equal(trainer.evaluated[-1][1], dict(trainer.evaluated)[best])


def test_steps_that_a_scaler_skipped_are_no_updates(tmp_path):
    class Overflowing(Seen):
        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            if self.state.global_step % 3 == 0:
                self.model.transformer.wte.weight.grad.fill_(float("inf"))
            return loss

    trainer = trainer_of(tmp_path, optim="adamw_torch")  # a fused optimizer skips on the device, and nobody is told
    trainer.__class__ = Overflowing
    averaging = WeightAveraging(partial(EMA, decay=0.5)).attach(trainer)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    trainer.args.max_grad_norm = 0.0  # clipping unscales only under fp16, which is for GPUs
    trainer.train()
    assert trainer.state.global_step == 12
    assert averaging.averager.step == 8


def test_what_is_wrong_is_told(tmp_path, caplog):
    with pytest.raises(RuntimeError, match=r"attach\(trainer\)"):
        trainer_of(tmp_path, WeightAveraging(lawa)).train()
    trainer = trainer_of(tmp_path)
    averaging = WeightAveraging(lawa).attach(trainer)
    with pytest.raises(RuntimeError, match="attached to a Trainer already"):
        averaging.attach(trainer)
    trainer.evaluate()
    assert "no average of this model" in caplog.text


def test_a_run_that_did_not_average_before_begins_now(tmp_path, caplog):
    trainer_of(tmp_path, max_steps=8).train()
    trainer = trainer_of(tmp_path)
    averaging = WeightAveraging(lawa).attach(trainer)
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint=True)
    assert "has no state of WeightAveraging: the average begins anew" in caplog.text
    assert averaging.averager.snapshot_steps == [10, 12]


def test_an_error_in_an_evaluation_leaves_the_raw_weights(tmp_path):
    class Failing(Seen):
        def prediction_step(self, *args, **kwargs):
            if self.state.global_step == 8:
                raise ArithmeticError
            return super().prediction_step(*args, **kwargs)

    recorder = Recorder()
    trainer = trainer_of(tmp_path, recorder)
    trainer.__class__ = Failing
    WeightAveraging(lawa).attach(trainer)
    with pytest.raises(ArithmeticError):
        trainer.train()
    np.testing.assert_array_equal(flat(trainer.model), recorder.snapshots[-1])


@pytest.mark.parametrize("how", [[], ["fsdp2"]], ids=["ddp", "fsdp2"])
def test_two_processes(tmp_path, how):
    if how and not hasattr(torch.distributed.fsdp, "fully_shard"):
        pytest.skip("FSDP2 does not run on a CPU in this torch")
    command = [python(), "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "-m", "tests.processes.transformers_ranks", str(tmp_path), *how],
        capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    assert done.stdout.count("as expected") == 2

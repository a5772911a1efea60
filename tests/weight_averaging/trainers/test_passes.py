"""Raw weights and average under two names, several averages in one trainer, passes that training does not notice."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from tests.weight_averaging.trainers.test_whose_average import hugging_face, lightning  # noqa: F401
from weight_averaging.torch import LAWA
from weight_averaging.trainers.passes import apart, kept_random_numbers


def test_random_numbers_of_a_pass_are_not_missed():
    def draw():
        return torch.rand(1).item(), random.random(), np.random.rand()

    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(0)
    with kept_random_numbers():
        inside = draw()
    assert draw() == inside


@pytest.mark.parametrize("workers", [0, 1])
def test_a_pass_apart_is_not_noticed_by_the_one_under_way(workers):
    """With persistent workers a second pass over one loader starts the first anew."""

    def loader():
        generator = torch.Generator().manual_seed(0)
        options = {"num_workers": workers, "persistent_workers": workers > 0}
        return torch.utils.data.DataLoader(range(6), 1, shuffle=True, generator=generator, **options)

    def epochs(loader, beside):
        seen = []
        for _ in range(2):
            for batch in loader:
                seen.append(batch.item())
                if beside and len(seen) % 4 == 1:
                    with kept_random_numbers(), apart(loader) as other:
                        assert sorted(batch.item() for batch in other) == list(range(6))
        return seen

    assert epochs(loader(), True) == epochs(loader(), False)


def test_samplers_that_count_epochs_do_not_count_a_pass_apart():
    class Sampler(torch.utils.data.Sampler):
        epoch = 3

        def __iter__(self):
            yield from range(4)
            self.epoch += 1

        def __len__(self):
            return 4

    loader = torch.utils.data.DataLoader(range(4), 2, sampler=Sampler())
    loader.sampler.epoch = 5
    with apart(loader) as other:
        assert len(list(other)) == 2
        assert loader.sampler.epoch == 6
    assert loader.sampler.epoch == 5


def test_what_the_options_cannot_be_is_told(lightning):  # noqa: F811
    for options, message in (
        ({"evaluate": "raw"}, "evaluate must be one of average, both, apart, not 'raw'"),
        ({"evaluate": "apart"}, "needs a name="),
        ({"name": "a b"}, "name must be like that of a variable, and not raw: got 'a b'"),
        ({"name": "raw"}, "name must be like that of a variable, and not raw: got 'raw'"),
    ):
        with pytest.raises(ValueError, match=message):
            lightning.averaging(**options)


# Lightning.


@pytest.fixture
def drawing(lightning):  # noqa: F811
    """A module whose training and validation draw random numbers."""

    class Drawing(lightning.Growing):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * torch.rand(1).item()

        def validation_step(self, batch, batch_idx):
            torch.rand(1)
            super().validation_step(batch, batch_idx)

        test_step = validation_step

    return Drawing


def test_lightning_raw_weights_and_average_are_validated_under_two_names(lightning, drawing, tmp_path):  # noqa: F811
    from lightning.pytorch.callbacks import EarlyStopping

    ends, progress = [], []
    for evaluate in ("average", "both"):
        torch.manual_seed(0)
        module, averaging = drawing(), lightning.averaging(evaluate=evaluate)
        folder = tmp_path / evaluate
        saving = lightning.ModelCheckpoint(folder, save_last=True)
        # Each evaluation of the average is better than the last: two a time would be one without an improvement.
        stopping = EarlyStopping("v", mode="max", patience=1)
        trainer = lightning.trainer(
            folder, averaging, saving, stopping, max_epochs=3, num_sanity_val_steps=1, val_check_interval=2
        )
        trainer.fit(module, lightning.rows(4), lightning.rows(1))
        assert trainer.global_step == 12
        ends.append(module.w.item())
        progress.append(torch.load(folder / "last.ckpt", weights_only=True)["loops"])
        metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
        with averaging.averaged():
            average = module.w.item()
        assert metrics == {"v": average} | ({"raw_v": ends[-1]} if evaluate == "both" else {})
        for run in (trainer.test, trainer.validate):
            assert run(module, lightning.rows(1), verbose=False) == [metrics]
    assert ends[0] == ends[1]
    assert progress[0] == progress[1]
    assert len(module.seen) == 1 + 2 * (6 + 2)  # the sanity check sees the raw weights, once


def test_lightning_a_checkpoint_may_be_the_best_of_the_raw_weights(lightning, tmp_path):  # noqa: F811
    module, averaging = lightning.Growing(), lightning.averaging(evaluate="both")
    raw = lightning.ModelCheckpoint(tmp_path, monitor="raw_v", mode="max", filename="raw")
    average = lightning.AveragedCheckpoint(dirpath=tmp_path, monitor="v", mode="max", filename="average")
    lightning.trainer(tmp_path, averaging, raw, average).fit(module, lightning.rows(4), lightning.rows(1))
    assert (raw.best_model_score, average.best_model_score) == (4, 3.5)
    assert torch.load(average.best_model_path, weights_only=True)["state_dict"]["w"].item() == 3.5


def test_lightning_two_averages_of_the_same_weights(lightning, tmp_path):  # noqa: F811
    def callbacks():
        slow = lightning.averaging(4, evaluate="apart", name="slow")
        return lightning.averaging(2, evaluate="both"), slow

    saving = lightning.ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1)
    of_slow = lightning.AveragedCheckpoint(dirpath=tmp_path, of="slow", filename="slow")
    shown = lightning.AveragedCheckpoint(dirpath=tmp_path, filename="shown")
    of_fast = lightning.AveragedCheckpoint(dirpath=tmp_path, of="fast")  # each has a state of its own in checkpoints
    assert len({callback.state_key for callback in (*callbacks(), of_slow, shown, of_fast)}) == 5
    module = lightning.Growing()
    trainer = lightning.trainer(tmp_path, *callbacks(), saving, of_slow, shown)
    trainer.fit(module, lightning.rows(4), lightning.rows(1))
    metrics = {"slow_v": 2.5, "raw_v": 4, "v": 3.5}
    assert {name: value.item() for name, value in trainer.callback_metrics.items()} == metrics
    for name, value in (("slow", 2.5), ("shown", 3.5)):
        assert torch.load(tmp_path / f"{name}.ckpt", weights_only=True)["state_dict"]["w"].item() == value

    fresh = lightning.trainer(tmp_path, *callbacks())
    assert fresh.test(lightning.Growing(), lightning.rows(1), ckpt_path=tmp_path / "step=4.ckpt", verbose=False) == [
        metrics
    ]
    again, others = lightning.Growing(), callbacks()
    trainer = lightning.trainer(tmp_path, *others, max_epochs=2)
    trainer.fit(again, lightning.rows(4), lightning.rows(1), ckpt_path=tmp_path / "step=4.ckpt")
    assert [averaging.averager.snapshot_steps for averaging in others] == [[7, 8], [5, 6, 7, 8]]
    lost = lightning.trainer(tmp_path, lightning.averaging(), lightning.AveragedCheckpoint(dirpath=tmp_path, of="fast"))
    with pytest.raises(RuntimeError, match="no WeightAveraging has this name"):
        lost.fit(lightning.Growing(), lightning.rows(1))


def test_lightning_two_averages_of_parts_are_evaluated_together_and_of_the_same_refused(
    lightning,  # noqa: F811
    tmp_path,
):
    class Two(lightning.Growing):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
            nn.init.zeros_(self.a.weight)
            nn.init.zeros_(self.b.weight)

        def training_step(self, batch, _):
            return -self.a.weight.sum() - 10 * self.b.weight.sum()

        def validation_step(self, batch, _):
            self.seen.append((self.a.weight.item(), self.b.weight.item()))

    def of(part, window, name):
        return lightning.WeightAveraging(lambda m: LAWA(getattr(m, part), interval=1, window=window), name=name)

    module = Two()
    trainer = lightning.trainer(tmp_path, of("a", 2, "one"), of("b", 4, "other"))
    trainer.fit(module, lightning.rows(4), lightning.rows(1))
    assert module.seen == [(3.5, 25.0)]
    assert (module.a.weight.item(), module.b.weight.item()) == (4, 40)
    with pytest.raises(ValueError, match="give one of them a name= and"):
        lightning.trainer(tmp_path, of("a", 2, "one"), of("a", 4, "other")).fit(Two(), lightning.rows(4))


# Hugging Face.


def test_hugging_face_raw_weights_and_averages_are_evaluated_under_names_of_their_own(hugging_face, tmp_path):  # noqa: F811
    def run(folder, **settings):
        given = {"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 4, "max_steps": 8}
        trainer = hugging_face.trainer(folder, **{**given, **settings})
        fast = hugging_face.averaging(evaluate="both").attach(trainer)
        slow = hugging_face.averaging(4, evaluate="apart", name="slow").attach(trainer)
        return trainer, fast, slow

    trainer, _, _ = run(tmp_path)
    trainer.train()
    logged = [row for row in trainer.state.log_history if "eval_loss" in row]
    assert [(row["eval_loss"], row["eval_raw_loss"], row["eval_slow_loss"]) for row in logged] == [
        (-3.5, -4, -2.5),
        (-7.5, -8, -6.5),
    ]
    metrics = trainer.predict(trainer.eval_dataset).metrics
    assert (metrics["test_loss"], metrics["test_raw_loss"], metrics["test_slow_loss"]) == (-7.5, -8, -6.5)
    assert hugging_face.held(tmp_path / "checkpoint-4") == [3, 4]
    assert hugging_face.held(tmp_path / "checkpoint-4", "weight_averaging_slow") == [1, 2, 3, 4]
    again, fast, slow = run(tmp_path, max_steps=6)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert [fast.averager.snapshot_steps, slow.averager.snapshot_steps] == [[5, 6], [3, 4, 5, 6]]

    best = {"load_best_model_at_end": True, "metric_for_best_model": "raw_loss", "greater_is_better": True}
    trainer, fast, slow = run(tmp_path / "best", **best)
    trainer.train()
    assert trainer.model.w.item() == 4  # the first checkpoint
    assert [fast.averager.snapshot_steps, slow.averager.snapshot_steps] == [[3, 4], [1, 2, 3, 4]]
    with pytest.raises(RuntimeError, match="give this one a name= of its own"):
        hugging_face.averaging().attach(trainer)
    hugging_face.averaging(name="third").attach(trainer)
    with pytest.raises(ValueError, match="give one of them a name= and"):
        trainer.train()

"""What classes derived from Hugging Face's Trainer keep beside it, by small ones that do as TRL's and others do.

The model's one weight grows by 1 at each step: a number tells whose weights were seen. The libraries themselves are in
`test_trl.py` and `test_sentence_transformers.py`.
"""

import logging
from collections import defaultdict

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
from transformers import Trainer

from tests.weight_averaging.trainers.growing_transformers import Growing, averaging, trainer
from weight_averaging.torch import LAWA
from weight_averaging.trainers.transformers import WeightAveraging

EVALUATING = {"eval_strategy": "steps", "eval_steps": 2}


def of_class(derived: type[Trainer], folder, **settings) -> Trainer:
    made = trainer(folder, **settings)
    made.__class__ = derived
    return made


class GathersMeans(Trainer):
    """As TRL's: means of what `compute_loss` saw since the last log."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        self._metrics["train" if model.training else "eval"]["weight"].append(model.w.item())
        return super().compute_loss(model, inputs, *args, **kwargs)

    def log(self, logs, *args, **kwargs):
        mode = "train" if self.model.training else "eval"
        means = {key: sum(found) / len(found) for key, found in self._metrics[mode].items()}
        logs.update({f"eval_{key}": mean for key, mean in means.items()} if mode == "eval" else means)
        super().log(logs, *args, **kwargs)
        self._metrics[mode].clear()


class GathersSums(Trainer):
    """As sentence-transformers': sums of tensors, and the number of steps."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        sums = self.accum_loss_components["train" if model.training else "eval"]
        for key, value in (("weight", model.w.detach().sum()), ("steps", torch.tensor(1))):
            sums[key] = sums.get(key, 0) + value
        return super().compute_loss(model, inputs, *args, **kwargs)

    def log(self, logs, *args, **kwargs):
        sums = self.accum_loss_components["eval"]
        if "eval_loss" in logs:
            logs["eval_weight"] = (sums["weight"] / sums["steps"]).item()
            sums.clear()
        super().log(logs, *args, **kwargs)


@pytest.mark.parametrize("derived", [GathersMeans, GathersSums])
def test_what_two_passes_gather_for_the_log_is_not_mixed(tmp_path, derived):
    trained = of_class(derived, tmp_path, metric_for_best_model="raw_weight", save_steps=2, **EVALUATING)
    trained._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    trained.accum_loss_components = {"train": {}, "eval": {}}
    averaging(evaluate="both").attach(trained)
    averaging(window=3, evaluate="apart", name="slow").attach(trained)
    trained.train()
    entries = [entry for entry in trained.state.log_history if "eval_loss" in entry]
    names = ("eval_weight", "eval_raw_weight", "eval_slow_weight", "eval_raw_loss")
    assert [[entry[name] for name in names] for entry in entries] == [[1.5, 2.0, 2.0, -2.0], [3.5, 4.0, 3.0, -4.0]]
    assert "eval_raw_weight" not in trained.predict(trained.eval_dataset).metrics


class Shuffles(Trainer):
    """As sentence-transformers': evaluations are in an order of chance, which losses within a batch depend on."""

    def _get_eval_sampler(self, dataset):
        return torch.utils.data.RandomSampler(dataset, generator=torch.Generator().manual_seed(0))

    def prediction_step(self, model, inputs, *args, **kwargs):
        self.order.append(inputs["x"].item())
        return super().prediction_step(model, inputs, *args, **kwargs)


def test_two_passes_are_over_the_same_batches_and_the_trainers_own_are_as_ever(tmp_path):
    rows = [{"x": torch.full((1,), float(number)), "labels": torch.zeros(1)} for number in range(6)]
    orders = {}
    for evaluate in ("average", "both"):
        trained = of_class(Shuffles, tmp_path, per_device_eval_batch_size=1, **EVALUATING)
        trained.eval_dataset, trained.order = rows, []
        averaging(evaluate=evaluate).attach(trained)
        trained.train()
        orders[evaluate] = [trained.order[start : start + 6] for start in range(0, len(trained.order), 6)]
    first, second = orders["average"]
    assert orders["both"] == [first, first, second, second]
    assert first != sorted(first)


class HasEngine(Trainer):
    """As TRL's with vLLM: an engine that generates has a copy of the weights, loaded once a step."""

    def loads(self, mode):
        if self.state.global_step != self._last_loaded_step:
            self.engine, self._last_loaded_step = self.model.w.item(), self.state.global_step
        self.generated.append((mode, self.state.global_step, self.engine))

    def training_step(self, *args, **kwargs):
        self.loads("train")
        return super().training_step(*args, **kwargs)

    def prediction_step(self, *args, **kwargs):
        self.loads("eval")
        return super().prediction_step(*args, **kwargs)


@pytest.mark.parametrize("evaluate", ["average", "both"])
def test_an_engine_has_the_raw_weights_in_training_and_the_average_in_evaluations(tmp_path, evaluate):
    trained = of_class(HasEngine, tmp_path, **EVALUATING)
    trained._last_loaded_step, trained.generated = -1, []
    averaging(evaluate=evaluate).attach(trained)
    trained.train()
    trained.evaluate()
    raw = [[("eval", step, float(step))] if evaluate == "both" else [] for step in (2, 4)]
    assert trained.generated == [
        ("train", 0, 0.0), ("train", 1, 1.0), *raw[0], ("eval", 2, 1.5),
        ("train", 2, 2.0), ("train", 3, 3.0), *raw[1], ("eval", 4, 3.5), *raw[1], ("eval", 4, 3.5),
    ]  # fmt: skip


class WithHead(nn.Module):
    """As losses of sentence-transformers with weights of their own: it has the model."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.head = nn.Linear(1, 1, bias=False)


@pytest.mark.parametrize("whole", [False, True])
def test_weights_that_are_trained_and_no_part_of_the_model_are_named(tmp_path, caplog, whole):
    model = Growing()
    trained = trainer(tmp_path, model=model)
    trained.loss = WithHead(model)
    trained.optimizer = torch.optim.SGD(trained.loss.parameters(), lr=1.0)
    part = (
        (lambda model: LAWA(trained.loss, interval=1, window=2)) if whole else lambda m: LAWA(m, interval=1, window=2)
    )
    averaged = WeightAveraging(part).attach(trained)
    with caplog.at_level(logging.WARNING, logger="weight_averaging"):
        trained.train()
    told = "the optimizer also trains loss.head.weight, no part of the model: not averaged" in caplog.text
    assert told is not whole
    with averaged.averaged():
        assert model.w.item() == 3.5

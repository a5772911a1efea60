"""criteo1tb's lines, and a linear model of their 13 counts."""

import itertools
from pathlib import Path

import torch


class LinesWorkload:
    loss_type, model_params_types, metrics_logger = None, None, None
    eval_batch_size = property(lambda self: 8)
    num_train_examples = property(lambda self: 64)
    num_eval_train_examples = num_validation_examples = num_test_examples = property(lambda self: 8)
    eval_period_time_sec = property(lambda self: 100)
    step_hint = property(lambda self: 10_000)

    def _lines(self, data_dir, name):
        for line in itertools.cycle((Path(data_dir) / name).read_text().splitlines()[:64]):
            yield [float(value) for value in line.split("\t")[:14]]

    def _batch(self, lines, size):
        rows = torch.tensor(list(itertools.islice(lines, size)))
        return {"inputs": rows[:, 1:], "targets": rows[:, 0]}

    def _build_input_queue(self, data_dir, size):
        lines = self._lines(data_dir, "day_0_00")
        while True:
            yield self._batch(lines, size)

    def init_model_fn(self, rng):
        torch.manual_seed(rng[1])
        return torch.nn.Linear(13, 1), None

    def model_fn(self, params, batch, model_state, mode, rng, update_batch_norm, dropout_rate=0.0):
        return params(batch["inputs"])[:, 0], None

    def loss_fn(self, label_batch, logits_batch, mask_batch=None, label_smoothing=0.0):
        each = (logits_batch - label_batch) ** 2
        return {"summed": each.sum(), "n_valid_examples": torch.tensor(float(len(each))), "per_example": each}

    def eval_model(self, global_batch_size, params, model_state, rng, data_dir, imagenet_v2_data_dir, global_step):
        with torch.no_grad():
            batch = self._batch(self._lines(data_dir, "day_23_00"), self.num_validation_examples)
            loss = ((params(batch["inputs"])[:, 0] - batch["targets"]) ** 2).mean().item()
        return {"train/loss": loss, "validation/loss": loss, "test/loss": loss}

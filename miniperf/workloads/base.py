"""What the miniature workloads share in any framework: splits held in memory, reproducible batches, evaluation."""

import abc
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from miniperf import random_utils, spec
from weight_averaging.errors import UsageError

# The examples of one split: arrays by name, each with one row an example. Without further ado the names are those of
# the batch, `inputs` and `targets`; what has no fixed size is padded here and cut to size in `collate`.
Split = dict[str, np.ndarray]


def size(split: Split) -> int:
    """The number of examples."""
    return len(next(iter(split.values())))


class MiniWorkload(spec.Workload):
    """A `spec.Workload` whose data fits in memory.

    One subclass, in `data.py`, gives the data, its targets and metrics; another, for each framework, how batches become
    its arrays (`place`). A workload is both, and gives the model and the loss.
    """

    batch_size: int  # of training: a miniature carries its own, since submissions know only the official workloads
    target_share = 0.8  # of step_hint, by which the median run of the tuned baseline has just reached the target
    higher_is_better = True
    test_target_value: float
    train_mean: Any = 0.0
    train_stddev: Any = 1.0
    eval_batch_size = 4096
    max_eval_train_examples: int | None = None  # default: as many as there are for validation
    max_allowed_runtime_sec = 600
    eval_period_time_sec = 2
    rank, ranks = 0, 1  # this process among those that train together: each takes its part of every batch

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._splits: dict[str, Split] | None = None

    # What a subclass in data.py provides, in numpy.

    @abc.abstractmethod
    def load_splits(self) -> dict[str, Split]:
        """The splits `train`, `validation` and `test`."""

    def collate(self, rows: Split, rng: np.random.RandomState | None) -> dict[str, Any]:
        """A batch from rows of a split and their `weights` [batch], 0 for padding. In training `rng` is given, for
        random augmentation. By default the rows are the batch."""
        return rows

    def metric_sums(self, batch: dict[str, Any], logits: Any) -> dict[str, Any]:
        """Metrics beside the loss, summed over the examples of a batch with weight 1; evaluation divides by their
        number. Batch and logits are a framework's arrays, on the CPU: numpy takes them.

        A metric that is no mean over examples (BLEU, WER, mAP) overrides `evaluate_batch` and `metrics` instead."""
        return {}

    def evaluate_batch(self, model: Any, batch: dict[str, Any], logits: Any) -> dict[str, Any]:
        """What `metrics` needs to know of one batch."""
        sums = {**self.metric_sums(batch, logits), "loss": self.losses(batch, logits)["summed"]}
        return {name: float(value) for name, value in sums.items()}

    def losses(self, batch: dict[str, Any], logits: Any) -> dict[str, Any]:
        """What `loss_fn` says of a batch in evaluation."""
        return self.loss_fn(batch["targets"], logits, batch["weights"])

    def metrics(self, parts: list[dict[str, Any]], num_examples: int) -> dict[str, float]:
        """The metrics of a split from what `evaluate_batch` returned for each of its batches."""
        return {name: sum(part[name] for part in parts) / num_examples for name in parts[0]}

    # What a subclass for a framework provides.

    @abc.abstractmethod
    def place(self, batch: Any) -> Any:
        """A batch of arrays as the framework's, to train on."""

    # The API.

    @property
    def splits(self) -> dict[str, Split]:
        if self._splits is None:
            self._splits = self.load_splits()
        return self._splits

    @property
    def num_train_examples(self) -> int:
        return size(self.splits["train"])

    @property
    def num_eval_train_examples(self) -> int:
        return min(self.max_eval_train_examples or self.num_validation_examples, self.num_train_examples)

    @property
    def num_validation_examples(self) -> int:
        return size(self.splits["validation"])

    @property
    def num_test_examples(self) -> int:
        return size(self.splits["test"])

    def _reached(self, value: float, target: float) -> bool:
        return value >= target if self.higher_is_better else value <= target

    def has_reached_validation_target(self, eval_result: dict[str, float]) -> bool:
        return self._reached(eval_result[f"validation/{self.target_metric_name}"], self.validation_target_value)

    def has_reached_test_target(self, eval_result: dict[str, float]) -> bool:
        return self._reached(eval_result[f"test/{self.target_metric_name}"], self.test_target_value)

    def _build_input_queue(
        self,
        data_rng: Any,
        split: str,
        data_dir: str,
        global_batch_size: int,
        cache: bool | None = None,
        repeat_final_dataset: bool | None = None,
        num_batches: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        del data_dir, cache, repeat_final_dataset, num_batches
        _ = self.splits  # loaded now: the first batch is drawn when the clock runs
        if global_batch_size % self.ranks:
            raise UsageError(f"the batch of {global_batch_size} examples does not divide by {self.ranks} ranks")
        if split == "train":
            return self._train_batches(data_rng, global_batch_size)
        return self._eval_batches(split, global_batch_size)

    def _train_batches(self, data_rng: Any, batch_size: int) -> Iterator[dict[str, Any]]:
        """Endless epochs, each in a new order that depends on nothing but the key and the epoch."""
        data = self.splits["train"]
        if batch_size > size(data):
            raise ValueError(f"batch size {batch_size} exceeds the {size(data)} training examples")
        share = batch_size // self.ranks
        first = self.rank * share
        weights = np.ones(share, np.float32)
        epoch_key = random_utils.split(data_rng)[0]
        while True:
            epoch_key, order_key = random_utils.split(epoch_key)
            rng = np.random.RandomState(order_key)
            order = rng.permutation(size(data))
            for start in range(0, size(data) - batch_size + 1, batch_size):
                indices = order[start : start + batch_size][first : first + share]
                rows = {name: column[indices] for name, column in data.items()}
                yield self.place(self.collate({**rows, "weights": weights}, rng))

    def _eval_batches(self, split: str, batch_size: int) -> Iterator[dict[str, Any]]:
        """The split in order, over and over; the last batch is padded with examples of weight 0."""
        data = self.splits["train" if split == "eval_train" else split]
        count = self.num_eval_train_examples if split == "eval_train" else size(data)
        while True:
            for start in range(0, count, batch_size):
                stop = min(start + batch_size, count)
                padding = batch_size - (stop - start) if count > batch_size else 0
                rows = {name: column[start:stop] for name, column in data.items()}
                rows["weights"] = np.ones(stop - start, np.float32)
                yield self.place(self.collate({name: _pad(column, padding) for name, column in rows.items()}, None))

    def _eval_model_on_split(
        self,
        split: str,
        num_examples: int,
        global_batch_size: int,
        params: Any,
        model_state: Any,
        rng: Any,
        data_dir: str,
        global_step: int = 0,
    ) -> dict[str, float]:
        del global_step
        if split not in self._eval_iters:
            self._eval_iters[split] = self._build_input_queue(rng, split, data_dir, global_batch_size)
        parts = []
        for _ in range(math.ceil(num_examples / global_batch_size)):
            batch = next(self._eval_iters[split])
            logits, _ = self.model_fn(params, batch, model_state, spec.ForwardPassMode.EVAL, rng, False)
            parts.append(self.evaluate_batch(params, batch, logits))
        return self.metrics(parts, num_examples)


def _pad(column: np.ndarray, rows: int) -> np.ndarray:
    return np.concatenate([column, np.zeros((rows, *column.shape[1:]), column.dtype)]) if rows else column

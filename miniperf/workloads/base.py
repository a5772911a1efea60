"""What the miniature workloads share: splits held in memory, reproducible batches, masked evaluation."""

import abc
import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from miniperf import random_utils, spec

# The examples of one split: tensors by name, each with one row an example. Without further ado the names are those of
# the batch, `inputs` and `targets`; what has no fixed size is padded here and cut to size in `collate`.
Split = dict[str, Tensor]


def size(split: Split) -> int:
    """The number of examples."""
    return len(next(iter(split.values())))


class MiniWorkload(spec.Workload):
    """A `spec.Workload` whose data fits in memory. Subclasses give the data, the model, the loss and the metric."""

    batch_size: int  # of training: a miniature carries its own, since submissions know only the official workloads
    higher_is_better = True
    train_mean: Any = 0.0
    train_stddev: Any = 1.0
    eval_batch_size = 4096
    max_eval_train_examples: int | None = None  # default: as many as there are for validation
    max_allowed_runtime_sec = 600
    eval_period_time_sec = 2

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._splits: dict[str, Split] | None = None

    # What a subclass provides.

    @abc.abstractmethod
    def load_splits(self) -> dict[str, Split]:
        """The splits `train`, `validation` and `test`."""

    @abc.abstractmethod
    def build_model(self) -> nn.Module:
        """A freshly initialised model; torch's generator is seeded."""

    def collate(self, rows: Split, rng: np.random.RandomState | None) -> dict[str, Any]:
        """A batch from rows of a split and their `weights` [batch], 0 for padding. In training `rng` is given, for
        random augmentation. By default the rows are the batch."""
        return rows

    def forward(self, model: nn.Module, batch: dict[str, Any], dropout_rate: float) -> Any:
        """The logits. By default the model takes the inputs and the dropout rate."""
        return model(batch["inputs"], dropout_rate)

    def metric_sums(self, batch: dict[str, Any], logits: Any) -> dict[str, Tensor]:
        """Metrics summed over the examples of a batch with weight 1; evaluation divides by their number.

        A metric that is no mean over examples (BLEU, WER, mAP) overrides `evaluate_batch` and `metrics` instead."""
        raise NotImplementedError(f"{type(self).__name__} gives neither metric_sums nor evaluate_batch and metrics")

    def evaluate_batch(self, model: nn.Module, batch: dict[str, Any], logits: Any) -> dict[str, Any]:
        """What `metrics` needs to know of one batch."""
        return {name: float(value) for name, value in self.metric_sums(batch, logits).items()}

    def metrics(self, parts: list[dict[str, Any]], num_examples: int) -> dict[str, float]:
        """The metrics of a split from what `evaluate_batch` returned for each of its batches."""
        return {name: sum(part[name] for part in parts) / num_examples for name in parts[0]}

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
        if split == "train":
            return self._train_batches(data_rng, global_batch_size)
        return self._eval_batches(split, global_batch_size)

    def _train_batches(self, data_rng: Any, batch_size: int) -> Iterator[dict[str, Any]]:
        """Endless epochs, each in a new order that depends on nothing but the key and the epoch."""
        data = self.splits["train"]
        if batch_size > size(data):
            raise ValueError(f"batch size {batch_size} exceeds the {size(data)} training examples")
        weights = torch.ones(batch_size)
        epoch_key = random_utils.split(data_rng)[0]
        while True:
            epoch_key, order_key = random_utils.split(epoch_key)
            rng = np.random.RandomState(order_key)
            order = torch.from_numpy(rng.permutation(size(data)))
            for indices in order.split(batch_size):
                if len(indices) == batch_size:
                    rows = {name: tensor[indices] for name, tensor in data.items()}
                    yield self.collate({**rows, "weights": weights}, rng)

    def _eval_batches(self, split: str, batch_size: int) -> Iterator[dict[str, Any]]:
        """The split in order, over and over; the last batch is padded with examples of weight 0."""
        data = self.splits["train" if split == "eval_train" else split]
        count = self.num_eval_train_examples if split == "eval_train" else size(data)
        while True:
            for start in range(0, count, batch_size):
                stop = min(start + batch_size, count)
                padding = batch_size - (stop - start) if count > batch_size else 0
                rows = {name: tensor[start:stop] for name, tensor in data.items()}
                rows["weights"] = torch.ones(stop - start)
                yield self.collate({name: _pad(tensor, padding) for name, tensor in rows.items()}, None)

    def init_model_fn(self, rng: Any) -> tuple[nn.Module, None]:
        torch.manual_seed(int(rng[0]))
        model = self.build_model()
        self._param_shapes = {name: spec.ShapeTuple(tuple(p.shape)) for name, p in model.named_parameters()}
        self._param_types = {name: parameter_type(model, name) for name, _ in model.named_parameters()}
        return model, None

    def model_fn(
        self,
        params: nn.Module,
        augmented_and_preprocessed_input_batch: dict[str, Any],
        model_state: Any,
        mode: spec.ForwardPassMode,
        rng: Any,
        update_batch_norm: bool,
        dropout_rate: float = 0.0,
    ) -> tuple[Any, None]:
        del model_state
        if mode == spec.ForwardPassMode.EVAL:
            params.eval()
            with torch.no_grad():
                return self.forward(params, augmented_and_preprocessed_input_batch, 0.0), None
        params.train()
        # Dropout drawn from the step's own key: a resumed run repeats the unbroken one whatever was drawn before.
        torch.manual_seed(int(rng[0]))
        with contextlib.nullcontext() if update_batch_norm else batch_norm_frozen(params):
            return self.forward(params, augmented_and_preprocessed_input_batch, dropout_rate), None

    def _eval_model_on_split(
        self,
        split: str,
        num_examples: int,
        global_batch_size: int,
        params: nn.Module,
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
            with torch.no_grad():
                parts.append(self.evaluate_batch(params, batch, logits))
        return self.metrics(parts, num_examples)


def summed(per_example: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    """The dictionary that `loss_fn` returns, from losses and a mask of 0 and 1, both [batch, ...]."""
    if mask is None:
        count = torch.tensor(float(per_example.numel()), device=per_example.device)
    else:
        # where, not a product: a padded example may well have an infinite loss.
        per_example = torch.where(mask > 0, per_example * mask, 0.0)
        count = mask.sum()
    return {"summed": per_example.sum(), "n_valid_examples": count, "per_example": per_example}


@contextlib.contextmanager
def batch_norm_frozen(model: nn.Module) -> Iterator[None]:
    """Batch norm normalises by the batch, but its running statistics stay: their momentum is 0."""
    layers = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


def _pad(tensor: Tensor, rows: int) -> Tensor:
    return torch.cat([tensor, tensor.new_zeros((rows, *tensor.shape[1:]))]) if rows else tensor


def parameter_type(model: nn.Module, name: str) -> spec.ParameterType:
    """The AlgoPerf type of a parameter, from the module that owns it."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    bias = leaf.startswith("bias")  # an LSTM has several
    if isinstance(owner, nn.Embedding):
        return spec.ParameterType.EMBEDDING
    if isinstance(owner, nn.LayerNorm):
        return spec.ParameterType.LAYER_NORM_BIAS if bias else spec.ParameterType.LAYER_NORM_SCALE
    if isinstance(owner, nn.modules.batchnorm._BatchNorm):
        return spec.ParameterType.BATCH_NORM_BIAS if bias else spec.ParameterType.BATCH_NORM_SCALE
    if isinstance(owner, nn.modules.conv._ConvNd) and not bias:
        return spec.ParameterType.CONV_WEIGHT
    if "qkv" in name:
        return spec.ParameterType.ATTENTION_BIAS if bias else spec.ParameterType.ATTENTION_QKV
    return spec.ParameterType.BIAS if bias else spec.ParameterType.WEIGHT

"""What the miniature workloads share: splits held in memory, reproducible batches, masked evaluation."""

import abc
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from miniperf import random_utils, spec


@dataclass(frozen=True)
class Split:
    """Examples of one split: `inputs` [n, ...] float32 and `targets` [n, ...]."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)


class MiniWorkload(spec.Workload):
    """A `spec.Workload` whose data fits in memory. Subclasses give the data, the model, the loss and the metric."""

    batch_size: int  # of training: a miniature carries its own, since submissions know only the official workloads
    higher_is_better = True
    train_mean: Any = 0.0
    train_stddev: Any = 1.0
    eval_batch_size = 4096
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
        """A freshly initialised model whose forward takes (inputs, dropout_rate); torch's generator is seeded."""

    @abc.abstractmethod
    def metric_sums(self, targets: Tensor, logits: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Metrics summed over the examples of a batch with weight 1; evaluation divides by their number."""

    def augment(self, inputs: Tensor, rng: np.random.RandomState) -> Tensor:
        """Training inputs after random augmentation; none by default."""
        return inputs

    # The API.

    @property
    def splits(self) -> dict[str, Split]:
        if self._splits is None:
            self._splits = self.load_splits()
        return self._splits

    @property
    def num_train_examples(self) -> int:
        return len(self.splits["train"])

    @property
    def num_eval_train_examples(self) -> int:
        return min(self.num_validation_examples, self.num_train_examples)

    @property
    def num_validation_examples(self) -> int:
        return len(self.splits["validation"])

    @property
    def num_test_examples(self) -> int:
        return len(self.splits["test"])

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
    ) -> Iterator[dict[str, Tensor]]:
        del data_dir, cache, repeat_final_dataset, num_batches
        if split == "train":
            return self._train_batches(data_rng, global_batch_size)
        return self._eval_batches(split, global_batch_size)

    def _train_batches(self, data_rng: Any, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Endless epochs, each in a new order that depends on nothing but the key and the epoch."""
        data = self.splits["train"]
        if batch_size > len(data):
            raise ValueError(f"batch size {batch_size} exceeds the {len(data)} training examples")
        weights = torch.ones(batch_size)
        epoch_key = random_utils.split(data_rng)[0]
        while True:
            epoch_key, order_key = random_utils.split(epoch_key)
            rng = np.random.RandomState(order_key)
            order = torch.from_numpy(rng.permutation(len(data)))
            for indices in order.split(batch_size):
                if len(indices) == batch_size:
                    inputs = self.augment(data.inputs[indices], rng)
                    yield {"inputs": inputs, "targets": data.targets[indices], "weights": weights}

    def _eval_batches(self, split: str, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """The split in order, over and over; the last batch is padded with examples of weight 0."""
        data = self.splits["train" if split == "eval_train" else split]
        count = self.num_eval_train_examples if split == "eval_train" else len(data)
        while True:
            for start in range(0, count, batch_size):
                stop = min(start + batch_size, count)
                padding = batch_size - (stop - start) if count > batch_size else 0
                weights = torch.ones(stop - start)
                yield {
                    "inputs": _pad(data.inputs[start:stop], padding),
                    "targets": _pad(data.targets[start:stop], padding),
                    "weights": _pad(weights, padding),
                }

    def init_model_fn(self, rng: Any) -> tuple[nn.Module, None]:
        torch.manual_seed(int(rng[0]))
        model = self.build_model()
        self._param_shapes = {name: spec.ShapeTuple(tuple(p.shape)) for name, p in model.named_parameters()}
        self._param_types = {name: parameter_type(model, name) for name, _ in model.named_parameters()}
        return model, None

    def model_fn(
        self,
        params: nn.Module,
        augmented_and_preprocessed_input_batch: dict[str, Tensor],
        model_state: Any,
        mode: spec.ForwardPassMode,
        rng: Any,
        update_batch_norm: bool,
        dropout_rate: float = 0.0,
    ) -> tuple[Tensor, None]:
        del model_state, update_batch_norm
        inputs = augmented_and_preprocessed_input_batch["inputs"]
        if mode == spec.ForwardPassMode.EVAL:
            params.eval()
            with torch.no_grad():
                return params(inputs, 0.0), None
        params.train()
        # Dropout drawn from the step's own key: a resumed run repeats the unbroken one whatever was drawn before.
        torch.manual_seed(int(rng[0]))
        return params(inputs, dropout_rate), None

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
        totals: dict[str, float] = {}
        for _ in range(math.ceil(num_examples / global_batch_size)):
            batch = next(self._eval_iters[split])
            logits, _ = self.model_fn(params, batch, model_state, spec.ForwardPassMode.EVAL, rng, False)
            for name, value in self.metric_sums(batch["targets"], logits, batch["weights"]).items():
                totals[name] = totals.get(name, 0.0) + float(value)
        return {name: total / num_examples for name, total in totals.items()}


def summed(per_example: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    """The dictionary that `loss_fn` returns, from losses [batch] and a mask [batch] of 0 and 1."""
    if mask is None:
        count = torch.tensor(float(len(per_example)), device=per_example.device)
    else:
        # where, not a product: a padded example may well have an infinite loss.
        per_example = torch.where(mask > 0, per_example * mask, 0.0)
        count = mask.sum()
    return {"summed": per_example.sum(), "n_valid_examples": count, "per_example": per_example}


def _pad(tensor: Tensor, rows: int) -> Tensor:
    return torch.cat([tensor, tensor.new_zeros((rows, *tensor.shape[1:]))]) if rows else tensor


def parameter_type(model: nn.Module, name: str) -> spec.ParameterType:
    """The AlgoPerf type of a parameter, from the module that owns it."""
    owner = model.get_submodule(name.rpartition(".")[0])
    bias = name.endswith("bias")
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

"""What the miniature workloads in PyTorch share: batches as tensors, models and their parameters' types."""

import contextlib
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from miniperf import spec
from miniperf.pytorch_utils import bare, in_ranks, pytorch_setup
from miniperf.workloads.base import MiniWorkload

_DDP, RANK, _DEVICE, RANKS = pytorch_setup()


class PyTorchWorkload(MiniWorkload):
    """A miniature in PyTorch. Beside the data a subclass gives the model, the loss and what needs them."""

    rank, ranks = RANK, RANKS

    @abstractmethod
    def build_model(self) -> nn.Module:
        """A freshly initialised model; torch's generator is seeded."""

    def forward(self, model: nn.Module, batch: dict[str, Any], dropout_rate: float) -> Any:
        """The logits. By default the model takes the inputs and the dropout rate."""
        return model(batch["inputs"], dropout_rate)

    def place(self, batch: Any) -> Any:
        """Arrays as tensors, in dictionaries and tuples of any depth; all else is left as it is."""
        if isinstance(batch, np.ndarray):
            return torch.from_numpy(batch)
        if isinstance(batch, dict):
            return {name: self.place(value) for name, value in batch.items()}
        if isinstance(batch, tuple):
            values = [self.place(value) for value in batch]
            return type(batch)(*values) if hasattr(batch, "_fields") else tuple(values)
        return batch

    def init_model_fn(self, rng: Any) -> tuple[nn.Module, None]:
        torch.manual_seed(int(rng[0]))
        model = self.build_model()
        self._param_shapes, self._param_types = parameters_of(model)
        return in_ranks(model), None

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
        torch.manual_seed(int(rng[0]) + self.rank)
        with contextlib.nullcontext() if update_batch_norm else batch_norm_frozen(params):
            return self.forward(params, augmented_and_preprocessed_input_batch, dropout_rate), None

    @torch.no_grad()
    def _eval_model_on_split(
        self,
        split: str,
        num_examples: int,
        global_batch_size: int,
        params: nn.Module,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, float]:
        """All ranks evaluate all examples, in the same moment, on the model itself."""
        return super()._eval_model_on_split(split, num_examples, global_batch_size, bare(params), *args, **kwargs)


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


def parameters_of(model: nn.Module) -> tuple[dict[str, spec.ShapeTuple], dict[str, spec.ParameterType]]:
    """The shapes and AlgoPerf types of a model's parameters, by their names."""
    shapes = {name: spec.ShapeTuple(tuple(parameter.shape)) for name, parameter in model.named_parameters()}
    return shapes, {name: parameter_type(model, name) for name in shapes}


def parameter_type(model: nn.Module, name: str) -> spec.ParameterType:
    """The AlgoPerf type of a parameter, from the module that owns it."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    bias = leaf.startswith("bias")  # an LSTM has several
    if isinstance(owner, nn.Embedding):
        return spec.ParameterType.EMBEDDING
    if isinstance(owner, nn.LayerNorm | nn.RMSNorm):
        return spec.ParameterType.LAYER_NORM_BIAS if bias else spec.ParameterType.LAYER_NORM_SCALE
    if isinstance(owner, nn.modules.batchnorm._BatchNorm):
        return spec.ParameterType.BATCH_NORM_BIAS if bias else spec.ParameterType.BATCH_NORM_SCALE
    if isinstance(owner, nn.modules.conv._ConvNd) and not bias:
        return spec.ParameterType.CONV_WEIGHT
    if "qkv" in name:
        return spec.ParameterType.ATTENTION_BIAS if bias else spec.ParameterType.ATTENTION_QKV
    return spec.ParameterType.BIAS if bias else spec.ParameterType.WEIGHT

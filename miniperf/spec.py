"""The AlgoPerf API (https://github.com/mlcommons/algorithmic-efficiency, `algoperf/spec.py`) under the same names.

In a process that already runs the official harness, its own classes are re-exported. So a miniature workload registered
there is a real `algoperf.spec.Workload`, and enum members compare equal.
"""

import abc
import enum
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

# What submissions name in their annotations.
Tensor = Shape = RandomState = OptimizerState = Hyperparameters = Any
ParameterContainer = ParameterShapeTree = ParameterTypeTree = ModelAuxiliaryState = ModelInitState = UpdateReturn = Any
InitOptimizerFn = UpdateParamsFn = PrepareForEvalFn = DataSelectionFn = Any
Timing = Steps = int
ParameterKey = str

if not TYPE_CHECKING and "algoperf.spec" in sys.modules:
    from algoperf.spec import ForwardPassMode, LossType, ParameterType, ShapeTuple, TrainingCompleteError, Workload
else:

    class LossType(enum.Enum):
        SOFTMAX_CROSS_ENTROPY = 0
        SIGMOID_CROSS_ENTROPY = 1
        MEAN_SQUARED_ERROR = 2
        CTC_LOSS = 3
        MEAN_ABSOLUTE_ERROR = 4

    class ForwardPassMode(enum.Enum):
        TRAIN = 0
        EVAL = 1

    class ParameterType(enum.Enum):
        WEIGHT = 0
        BIAS = 1
        CONV_WEIGHT = 2
        BATCH_NORM_SCALE = 3
        BATCH_NORM_BIAS = 4
        LAYER_NORM_SCALE = 5
        LAYER_NORM_BIAS = 6
        EMBEDDING = 7
        ATTENTION_Q = 8
        ATTENTION_K = 9
        ATTENTION_V = 10
        ATTENTION_OUT = 11
        ATTENTION_QKV = 12
        ATTENTION_KV = 13
        ATTENTION_BIAS = 14

    class ShapeTuple:
        """A shape that tree utilities take for a leaf."""

        def __init__(self, shape_tuple: tuple[int, ...]) -> None:
            self.shape_tuple = shape_tuple

        def __repr__(self) -> str:
            return f"ShapeTuple({self.shape_tuple})"

        def __eq__(self, other: object) -> bool:
            return isinstance(other, ShapeTuple) and self.shape_tuple == other.shape_tuple

        def __hash__(self) -> int:
            return hash(self.shape_tuple)

    class TrainingCompleteError(Exception):
        """Raised by update_params to end training; one last evaluation follows."""

    class Workload(abc.ABC):
        """What a submission may ask of a workload, and what the runner asks of it."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._param_shapes: dict[str, ShapeTuple] | None = None
            self._param_types: dict[str, ParameterType] | None = None
            self._eval_iters: dict[str, Iterator] = {}
            self.metrics_logger = None

        target_metric_name: str
        validation_target_value: float
        test_target_value: float | None  # None: the workload has no test split
        loss_type: LossType
        eval_batch_size: int
        train_mean: Any
        train_stddev: Any
        max_allowed_runtime_sec: int
        eval_period_time_sec: int
        step_hint: int

        @property
        @abc.abstractmethod
        def num_train_examples(self) -> int: ...

        @property
        @abc.abstractmethod
        def num_eval_train_examples(self) -> int: ...

        @property
        @abc.abstractmethod
        def num_validation_examples(self) -> int: ...

        @property
        @abc.abstractmethod
        def num_test_examples(self) -> int: ...

        @abc.abstractmethod
        def has_reached_validation_target(self, eval_result: dict[str, float]) -> bool: ...

        @abc.abstractmethod
        def has_reached_test_target(self, eval_result: dict[str, float]) -> bool: ...

        @abc.abstractmethod
        def _build_input_queue(
            self,
            data_rng: Any,
            split: str,
            data_dir: str,
            global_batch_size: int,
            cache: bool | None = None,
            repeat_final_dataset: bool | None = None,
            num_batches: int | None = None,
        ) -> Iterator[dict[str, Any]]: ...

        @abc.abstractmethod
        def init_model_fn(self, rng: Any) -> tuple[Any, Any]: ...

        @abc.abstractmethod
        def model_fn(
            self,
            params: Any,
            augmented_and_preprocessed_input_batch: dict[str, Any],
            model_state: Any,
            mode: ForwardPassMode,
            rng: Any,
            update_batch_norm: bool,
            dropout_rate: float = 0.0,
        ) -> tuple[Any, Any]: ...

        @abc.abstractmethod
        def loss_fn(
            self,
            label_batch: Any,
            logits_batch: Any,
            mask_batch: Any = None,
            label_smoothing: float = 0.0,
        ) -> dict[str, Any]: ...

        @abc.abstractmethod
        def is_output_params(self, param_key: str) -> bool: ...

        @abc.abstractmethod
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
        ) -> dict[str, float]: ...

        def open(self, data_dir: str) -> None:
            """Find the data, before anything is asked about it. UsageError if it cannot be used.

            Not part of AlgoPerf's API: its workloads know their numbers of examples by heart."""
            del data_dir  # a miniature brings its own

        def attach_metrics_logger(self, metrics_logger: Any) -> None:
            self.metrics_logger = metrics_logger

        @property
        def param_shapes(self) -> dict[str, ShapeTuple]:
            if self._param_shapes is None:
                raise ValueError("param_shapes is known only after init_model_fn(); call that first")
            return self._param_shapes

        @property
        def model_params_types(self) -> dict[str, ParameterType]:
            if self._param_types is None:
                raise ValueError("model_params_types is known only after init_model_fn(); call that first")
            return self._param_types

        def eval_model(
            self,
            global_batch_size: int,
            params: Any,
            model_state: Any,
            rng: Any,
            data_dir: str,
            imagenet_v2_data_dir: str | None,
            global_step: int,
        ) -> dict[str, float]:
            """Metrics on all three splits, as `train/loss`, `validation/accuracy`, ..."""
            results: dict[str, float] = {}
            for split, prefix, examples in (
                ("eval_train", "train", self.num_eval_train_examples),
                ("validation", "validation", self.num_validation_examples),
                ("test", "test", self.num_test_examples),
            ):
                metrics = self._eval_model_on_split(
                    split, examples, global_batch_size, params, model_state, rng, data_dir, global_step
                )
                results |= {f"{prefix}/{name}": value for name, value in metrics.items()}
                if prefix != "train":
                    results[f"{prefix}/num_examples"] = examples
            return results


__all__ = ["ForwardPassMode", "LossType", "ParameterType", "ShapeTuple", "TrainingCompleteError", "Workload"]

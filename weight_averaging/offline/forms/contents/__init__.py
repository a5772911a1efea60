"""What is in a checkpoint: its models, what is for training alone, and the rest. No depth or circle stops a walk."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

EXTRA_STATE = "_extra_state"  # what torch.nn.Module.get_extra_state gave, of any type

# For the training that goes on from a checkpoint: an average is evaluated, or trained on afresh.
TRAINING = {
    "amp", "amp_scaler", "averager", "averaging_state", "callbacks", "cuda_rng_state", "dataloader",
    "last_optimizer_state", "lr_scheduler", "lr_schedulers", "opt_state", "optim", "optimizer", "optimizer_state",
    "optimizer_state_dict", "optimizer_states", "optimizers", "random_state", "rng", "rng_state", "rng_states",
    "scaler", "scheduler", "scheduler_state_dict", "schedulers", "train_dataloader", "train_state",
}  # fmt: skip
_AVERAGER = {"averager", "tracks", "names"}
OPTIMIZERS = ({"state", "param_groups"}, {"state", "hypers"})  # torch's and fastai's
_DEEP = 64  # levels; what lies deeper stays as it is


def is_averager_state(contents: Any) -> bool:
    """Whether it is what `state_dict()` of one of our averagers gave."""
    return isinstance(contents, Mapping) and contents.keys() >= _AVERAGER


def is_state_dict(contents: Any) -> bool:
    """Whether it is a model's: named tensors, weights among them, and extra state. Single numbers make no model."""
    return (
        isinstance(contents, Mapping)
        and all(isinstance(name, str) for name in contents)
        and all(isinstance(value, Tensor) or is_extra(name) for name, value in contents.items())
        and any(
            isinstance(v, Tensor) and (v.is_floating_point() or v.is_complex()) and v.ndim for v in contents.values()
        )
    )


def is_extra(name: str) -> bool:
    return name.rpartition(".")[2] == EXTRA_STATE


def is_for_training(key: Any, value: Any) -> bool:
    """Whether an entry is of use to the training alone: by its key, or as an optimizer's state."""
    if key in TRAINING or is_averager_state(value):
        return True
    some = value if isinstance(value, list | tuple) and value else [value]
    return all(isinstance(one, Mapping) and any(one.keys() >= keys for keys in OPTIMIZERS) for one in some)


def number(value: Any) -> float | None:
    """A number, also as a tensor or of NumPy; None if it is none."""
    try:
        if isinstance(value, Tensor):
            value = value.item() if value.numel() == 1 else None
        elif type(value).__module__ == "numpy" and getattr(value, "size", 0) == 1:
            value = value.item()
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    except (RuntimeError, OverflowError):  # a tensor without a value, or an integer of a thousand digits
        return None


def averager_states(contents: Any) -> Iterator[Mapping[str, Any]]:
    """The states of our averagers, wherever in a checkpoint they are."""
    return (value for value in mappings(contents, is_averager_state) if is_averager_state(value))


def mappings(
    contents: Any, ends: Callable[[Mapping[Any, Any]], bool] = lambda value: False
) -> Iterator[Mapping[Any, Any]]:
    """All of them in a checkpoint, each once and before what is in it; what is in one at which it `ends` is not."""
    seen: set[int] = set()
    left = [contents]
    while left:
        value = left.pop()
        if not isinstance(value, Mapping | list | tuple) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            yield value
            if ends(value):
                continue
        left += reversed(list(value.values() if isinstance(value, Mapping) else value))


def models_beside(contents: Mapping[str, Any], model: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The state dicts in a checkpoint other than `model`, each with the keys that lead there, dots between."""
    seen = {id(model), id(contents)}
    left: list[tuple[str, Any]] = [("", contents)]
    while left:
        place, value = left.pop()
        for key, inner in value.items():
            if not isinstance(inner, Mapping) or id(inner) in seen or is_for_training(key, inner):
                continue
            seen.add(id(inner))
            path = f"{place}.{key}" if place else str(key)
            if is_state_dict(inner):
                yield path, inner
            else:
                left.append((path, inner))


def with_models(contents: Mapping[str, Any], models: Mapping[int, Any]) -> tuple[dict[str, Any], list[str]]:
    """A checkpoint without what is for training, and with other models in it.

    Args:
        models: what takes the place of a state dict, by the `id` of that; None: it is left out.
    Returns:
        The checkpoint; and the keys of what was left out, with dots between.
    """
    left_out: list[str] = []
    made: dict[int, Any] = {}

    def copy(value: Any, place: str, depth: int) -> Any:
        if id(value) in models:
            return models[id(value)]
        if not isinstance(value, Mapping) or depth == _DEEP:
            return value
        if id(value) not in made:
            result = made[id(value)] = {}
            for key, inner in value.items():
                path = f"{place}.{key}" if place else str(key)
                replaced = id(inner) in models
                if (is_for_training(key, inner) and not replaced) or (replaced and models[id(inner)] is None):
                    left_out.append(path)
                else:
                    result[key] = copy(inner, path, depth + 1)
        return made[id(value)]

    return copy(contents, "", 0), left_out

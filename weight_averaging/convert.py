"""The state of an averager from one framework to the other, through numpy; only the framework at hand is needed.

    held = convert.from_torch(lawa.state_dict())                 # where PyTorch is: numpy arrays and plain values
    state = convert.to_jax(held, averager, params, translate)    # where JAX is

and back by `from_jax` and `to_torch`; `Held` pickles. `translate` brings the model's own weights over, for instance
with a kernel's axes turned. It goes from a mapping of PyTorch's names to arrays to a tree like `params`, or back.
Without it the names are the paths of the tree, joined by dots.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from weight_averaging.averages import Average, exponential

if TYPE_CHECKING:
    from weight_averaging.jax import Averager

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Held:
    """What an averager holds.

    Attributes:
        settings: its hyperparameters; `averager` is LAWA or EMA.
        step: the last update seen.
        count: snapshots taken in so far.
        steps: the updates of the snapshots of a window, oldest first; of an EMA that of the last one taken in.
        values: of each snapshot, or of the EMA, the averaged tensors by name, float32 or complex64. Of an average with
            more digits (`dtype=torch.float64`, `compensated=True`) they are float64 or complex128.
        dtypes: the types that these have in the model, by name.
    """

    settings: dict[str, Any]
    step: int
    count: int
    steps: list[int]
    values: list[dict[str, np.ndarray]]
    dtypes: dict[str, str]


def from_torch(state: Mapping[str, Any]) -> Held:
    """What a `state_dict()` of PyTorch's LAWA or EMA holds.

    Args:
        state: that `state_dict()`.
    Raises:
        ValueError: it is of several averages, was saved while swapped, or of a model that is spread over ranks.
    """
    _check_kind(state["averager"])
    if state["raw"] is not None:
        raise ValueError(
            "the state was saved while the average was in the model: load it, swap_out(), and save it again"
        )
    (track,) = state["tracks"]
    vectors = track["vectors"][: len(track["snapshot_steps"])]
    if any(isinstance(vector, Mapping) for vector in vectors):
        raise ValueError("the state is of a model with DTensors: take one of the model on a single rank")
    dtypes = dict(zip(state["names"], state["dtypes"], strict=True))
    shapes = dict(zip(state["names"], state["shapes"], strict=True))
    keys = ("window", "allow_partial") if state["averager"] == "LAWA" else ("decay", "horizon", "warmup")
    return Held(
        {key: state[key] for key in ("averager", *keys, "interval", "start")},
        int(state["step"]),
        int(track["count"]),
        list(track["snapshot_steps"]),
        [_cut(vector.detach().cpu().numpy(), shapes, dtypes) for vector in vectors],
        dtypes,
    )


def to_torch(held: Held, buffers: str = "average") -> dict[str, Any]:
    """A state that `load_state_dict` of the like averager takes, of a model with tensors of these names.

    Args:
        held: of `from_torch` or `from_jax`.
        buffers: as that averager has it.
    """
    import torch

    settings = held.settings
    is_window = settings["averager"] == "LAWA"
    shapes = {name: list(_real(value).shape) for name, value in held.values[0].items()} if held.values else {}
    if not shapes:
        raise ValueError("there is no snapshot in the state yet: begin with a new averager")
    described = "" if is_window else str(_exponential(**settings))
    track = {
        "interval": settings["interval"],
        "start": settings["start"],
        "window": settings["window"] if is_window else None,
        "average": described,
        "snapshot_steps": list(held.steps),
        "count": held.count,
        "vectors": [
            torch.from_numpy(np.concatenate([_real(values[name]).reshape(-1) for name in shapes]))
            for values in held.values
        ],
    }
    return {
        **settings,
        "buffers": buffers,
        "step": held.step,
        "names": list(shapes),
        "shapes": list(shapes.values()),
        "dtypes": [held.dtypes[name] for name in shapes],
        "tracks": [track],
        "raw": None,
        "raw_statistics": {},
        "checksums": [],
    }


def from_jax(averager: "Averager", state: Any, params: Any, translate: Callable[[Any], Arrays] | None = None) -> Held:
    """What a state of `weight_averaging.jax` holds.

    Args:
        averager: whose state it is.
        params: parameters like those averaged, for their types.
        translate: from a tree like `params`, with numpy arrays as leaves, to arrays by PyTorch's names.
    Raises:
        ValueError: it is of another average than LAWA and EMA.
    """
    import jax

    from weight_averaging.jax.trees import is_averaged

    settings = dict(averager.settings)
    _check_kind(settings["averager"])
    translate = translate or _by_path
    count, window = int(state.count), settings.get("window", 1)
    slots = [number % window for number in range(max(0, count - window), count)]
    if settings["averager"] == "EMA":
        steps, trees = [int(state.snapshot_step)] * len(slots), [state.ema] * len(slots)
    else:
        steps = [int(state.steps[slot]) for slot in slots]
        trees = [_slot(state, slot) for slot in slots]
    like = jax.tree.map(np.asarray, jax.device_get(params))
    dtypes = {name: leaf.dtype.name for name, leaf in translate(like).items() if is_averaged(leaf)}

    def by_name(tree: Any) -> dict[str, np.ndarray]:
        tree = jax.tree.map(lambda leaf, own: np.asarray(own) if is_averaged(leaf) else leaf, like, tree)
        return {name: np.asarray(leaf) for name, leaf in translate(tree).items() if name in dtypes}

    values = [by_name(tree) for tree in trees]
    if hasattr(state, "compensation"):
        rest = by_name(state.compensation)
        values = [{name: one.astype(_wide(one)) + rest[name] for name, one in named.items()} for named in values]
    return Held(settings, int(state.step), count, steps, values, dtypes)


def to_jax(held: Held, averager: "Averager", params: Any, translate: Callable[[Arrays], Any] | None = None) -> Any:
    """The state of `averager` that holds the same, where and sharded as `averager.init(params)` would be.

    Args:
        held: of `from_torch` or `from_jax`.
        translate: from arrays by PyTorch's names to a tree like `params`, in which what is not averaged may be missing.
    Raises:
        ValueError: the averager has other settings or refuses a snapshot, or a leaf is missing or of another shape.
    """
    import jax

    from weight_averaging.jax.trees import is_averaged

    settings = dict(averager.settings)
    _check_kind(settings["averager"])
    if differing := [key for key, own in settings.items() if held.settings.get(key) != own]:
        key = differing[0]
        raise ValueError(f"the state has {key}={held.settings.get(key)!r}, and the averager {key}={settings[key]!r}")
    is_window = settings["averager"] == "LAWA"
    # A window that new settings have cut short holds less than it has taken in: it counts from its oldest.
    count = held.count if not is_window or len(held.steps) == settings["window"] else len(held.steps)
    state = averager.init(params)
    state = state._replace(count=state.count + (count - len(held.steps) if is_window else 0))

    def by_path(values: Arrays) -> dict[str, np.ndarray]:
        return {name: np.asarray(leaf) for name, leaf in _by_path(translate(values) if translate else values).items()}

    for step, values in zip(held.steps, held.values, strict=True):  # taken in anew, so that everything has its place
        arrays = by_path(values)

        def found(path: Any, leaf: Any, arrays: Arrays = arrays) -> Any:
            if not is_averaged(leaf):
                return leaf
            value = arrays.get(_name(path))
            if value is None or value.shape != leaf.shape:
                has = "is missing" if value is None else f"is {value.shape} in the state and {leaf.shape} in the model"
                raise ValueError(f"{_name(path)} {has}: translate has to give a tree like the parameters")
            return jax.device_put(value, getattr(leaf, "sharding", None))  # none of NumPy's arrays

        before = int(state.count)
        due = _next_due(step, settings["interval"], settings["start"])  # of an EMA with new settings it may not be
        state = averager.update(state, jax.tree_util.tree_map_with_path(found, params), due)
        if int(state.count) == before:
            raise ValueError(
                f"the averager refuses the snapshot of update {step}, which is not finite, or whose squares are not: "
                "make it with check_finite=False"
            )
    # By adding to what is there, the counters stay where they are.
    state = state._replace(step=state.step * 0 + held.step, count=state.count * 0 + count)
    if is_window or not held.steps:
        return state
    if hasattr(state, "compensation"):
        arrays = by_path({name: value - value.astype(_narrow(value)) for name, value in held.values[-1].items()})
        rest = jax.tree_util.tree_map_with_path(lambda path, own: _rest(own, arrays.get(_name(path))), state.ema)
        state = state._replace(compensation=rest)
    return state._replace(snapshot_step=state.snapshot_step * 0 + held.steps[-1])


def _exponential(averager: str, horizon: float | None, **settings: Any) -> Average:
    """Of an EMA's settings, in which `share` is called horizon."""
    return exponential(share=horizon, **settings)


def _wide(value: np.ndarray) -> Any:
    return np.promote_types(value.dtype, np.float64)


def _narrow(value: np.ndarray) -> Any:
    return np.complex64 if np.iscomplexobj(value) else np.float32


def _rest(own: Any, value: np.ndarray | None) -> Any:
    """What float32 leaves out of an average, where `own`, the average in it, is; nothing of one of its type."""
    import jax

    if value is None or own.dtype != _narrow(value):
        return jax.numpy.zeros_like(own)
    return jax.device_put(value.astype(own.dtype), own.sharding)


def _next_due(step: int, interval: int, start: int) -> int:
    return -(-max(step, start) // interval) * interval


def _check_kind(averager: str) -> None:
    if averager not in ("LAWA", "EMA"):
        raise ValueError(f"only the state of a LAWA or an EMA can be converted, not that of {averager}")


def _slot(state: Any, slot: int) -> Any:
    """The snapshot in a slot of a window: a tree of its own in host memory, else part of each array."""
    import jax

    if type(state).__name__ == "HostLAWAState":
        return state.snapshots[slot]
    return jax.tree.map(lambda own: own[slot] if own.ndim else own, state.snapshots)


def _cut(vector: np.ndarray, shapes: Mapping[str, list[int]], dtypes: Mapping[str, str]) -> dict[str, np.ndarray]:
    values, start = {}, 0
    for name, shape in shapes.items():
        stop = start + int(np.prod(shape))
        value = vector[start:stop].reshape(shape).copy()
        is_complex = dtypes[name].startswith("complex")
        values[name] = value.view(np.result_type(value, np.complex64))[..., 0] if is_complex else value
        start = stop
    return values


def _real(value: np.ndarray) -> np.ndarray:
    """Complex numbers as pairs, as PyTorch's averagers hold them."""
    return np.stack([value.real, value.imag], -1) if np.iscomplexobj(value) else value


def _by_path(tree: Any) -> dict[str, np.ndarray]:
    import jax

    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name(path: Any) -> str:
    """Keys, indices and attributes of a path, joined by dots."""
    return ".".join(str(getattr(part, "key", getattr(part, "idx", getattr(part, "name", part)))) for part in path)

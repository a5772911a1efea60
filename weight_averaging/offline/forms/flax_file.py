"""Flax's checkpoints in one file: `checkpoint_STEP` of flax.training and of the AlgoPerf harness in JAX, `.msgpack`."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from weight_averaging.averages import SnapshotError
from weight_averaging.offline.forms.contents import is_for_training, with_models
from weight_averaging.offline.forms.flax_format import (
    Array,
    Place,
    fields,
    in_parts,
    leaves,
    packed,
    tensor_of,
    unpacked,
)
from weight_averaging.offline.forms.source import NoModelError, WholeFile, joined
from weight_averaging.offline.forms.trainers import EPOCH_KEYS, STEP_KEYS, count
from weight_averaging.offline.layouts import Layout

_STEP = re.compile(r"checkpoint_\d+")
_MODEL_KEYS = ("model_params", "params", "model", "variables")  # the first is the official harness's


class FlaxSource(WholeFile):
    """One file.

    Raises:
        SnapshotError: msgpack is not installed, or the file is damaged or holds no weights.
    """

    form = "Flax checkpoint"
    unmarked = "file of msgpack"
    loading = 'flax.training.checkpoints.restore_checkpoint("{path}", target=None)'

    def __init__(self, path: Path, keys: Sequence[str] = ()) -> None:
        super().__init__(path)
        self._tree = unpacked(path, {})
        if not isinstance(self._tree, Mapping):
            raise SnapshotError(f"{path} holds no weights but a {type(self._tree).__name__}")
        numbers = {key: self.counter(key) for key in (*STEP_KEYS, *EPOCH_KEYS)}
        self.counters = {key: number for key, number in numbers.items() if number is not None}
        self._models = models_in(self._tree)
        self._unchosen: list[Any] = []
        if keys:
            for wanted in keys:
                if wanted not in self._models or not wanted:
                    there = ", ".join(filter(None, self._models))
                    raise SnapshotError(f"{path} has no weights at --key={wanted}; it has some at {there}")
            self._unchosen = [model for key, model in self._models.items() if key not in keys]
            self._models = {key: self._models[key] for key in keys}
        if not self._models:
            shown = ", ".join(map(str, list(self._tree)[:8]))
            raise NoModelError(f"{path} holds no weights; its keys are {shown}", for_training=False)
        self._arrays: dict[str, Array] = {}
        self._names: dict[tuple[str, Place], str] = {}
        for number, (key, model) in enumerate(self._models.items()):
            layout: Layout = {}
            for place, array in leaves(model):
                name = ".".join(place)
                name = joined(key, name) if number else name
                if array.dtype is None or name in self._arrays:
                    what = "is of a type that torch does not have" if array.dtype is None else "is there twice"
                    raise SnapshotError(f"{path}: {name} {what}")
                self._arrays[name], layout[name] = array, (array.shape, array.dtype)
                self._names[key, place] = name
            if number:
                self.others |= layout
            else:
                self.layout = layout
        self._put_raw()

    def _put_raw(self) -> None:
        """Read the raw weights where this project's submissions have the average in the model: `State.raw`."""
        raw = next(_raw(self._tree), None)
        if raw is None:
            return
        main = next(key for key in (*_MODEL_KEYS, "") if key in self._models or not key)
        if main not in self._models:
            raise SnapshotError(
                f"{self.path}: an average is in its model, and the raw weights aside: --key cannot tell"
            )
        of_state = sorted(place for place, _ in leaves(self._models.get("model_state")))
        statistics = [self._names["model_state", place] for place in of_state]
        aside = {self._names.get((main, place), "?"): array for place, array in leaves(raw["params"])}
        if raw["statistics"]:
            flat = [array for _, array in sorted(leaves(raw["statistics"]), key=lambda leaf: int(leaf[0][0]))]
            aside |= dict(zip(statistics, flat))
        for name, array in aside.items():
            there = self._arrays.get(name)
            if there is None or there.numel != array.numel or there.dtype != array.dtype:
                raise SnapshotError(f"{self.path}: the raw weights aside the average do not fit the model at {name}")
            self._arrays[name] = array._replace(shape=there.shape)
        if self.layout.keys() - aside.keys():
            raise SnapshotError(f"{self.path}: the raw weights aside the average are of another model")
        self.note = "averaged are the raw weights, which the optimizer's state has, not the average in the model"

    def counter(self, key: str) -> int | None:
        value = self._tree
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return count(value.value if isinstance(value, Array) else value)

    def read(self, names: list[str]) -> dict[str, Tensor]:
        found: dict[int, Any] = {part: None for name in names for part in self._arrays[name].parts}
        unpacked(self.path, found)
        tensors = {}
        for name in names:
            array = self._arrays[name]
            assert array.dtype is not None
            data = b"".join(fields(found[part])[2] for part in array.parts)
            tensors[name] = tensor_of(data, array.dtype).view(array.shape)
        return tensors

    def fits(self, path: Path) -> bool:
        return path.suffix == ".msgpack" or bool(_STEP.fullmatch(path.name))

    def write(self, state: Mapping[str, Tensor], file: IO[bytes], about: Mapping[str, str]) -> None:
        import msgpack

        tree = self._filled(state)[0]
        rest: dict[int, Any] = {part: None for _, array in leaves(tree) for part in array.parts}
        unpacked(self.path, rest)

        def default(value: Any) -> Any:
            if isinstance(value, Tensor):
                return packed(value)
            assert isinstance(value, Array)
            parts = [msgpack.ExtType(value.code, rest[part]) for part in value.parts]
            return parts[0] if len(parts) == 1 else in_parts(value.shape, parts)

        packer = msgpack.Packer(default=default, strict_types=True)

        def put(value: Any) -> None:
            """Array by array, so that no more than one is in memory twice."""
            if type(value) is not dict:
                file.write(packer.pack(value))
                return
            file.write(packer.pack_map_header(len(value)))
            for key, inner in value.items():
                file.write(packer.pack(key))
                put(inner)

        put(tree)

    def left_out(self, names: Collection[str]) -> list[str]:
        return self._filled(dict.fromkeys(names))[1]

    def _filled(self, state: Mapping[str, Any]) -> tuple[Any, list[str]]:
        def filled(key: str, value: Any, place: Place = ()) -> Any:
            if isinstance(value, Mapping):
                return {inner: filled(key, one, (*place, str(inner))) for inner, one in value.items()}
            return state[self._names[key, place]] if isinstance(value, Array) else value

        models: dict[int, Any] = dict.fromkeys(map(id, self._unchosen))
        for key, model in self._models.items():
            own = [name for (of, _), name in self._names.items() if of == key]
            models[id(model)] = filled(key, model) if all(name in state for name in own) else None
        if "" in self._models:
            return models[id(self._models[""])], [key for key in self._tree if key not in self._models[""]]
        return with_models(self._tree, models)


def models_in(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """The trees with weights in a checkpoint by their keys, the main one first; the checkpoint itself if it is one."""
    found = {
        str(key): inner
        for key, inner in tree.items()
        if isinstance(inner, Mapping) and not is_for_training(key, inner) and _has_weights(inner)
    }
    main = next((key for key in _MODEL_KEYS if key in found), None)
    if main is not None:
        return {main: found.pop(main), **found}
    rest = {key: inner for key, inner in tree.items() if not is_for_training(key, inner)}
    return {"": rest} if _has_weights(rest) else {}


def _has_weights(tree: Any) -> bool:
    return any(a.dtype is not None and a.dtype.is_floating_point and a.shape for _, a in leaves(tree))


def _raw(tree: Any) -> Iterator[Mapping[str, Any]]:
    """What is held aside in the states of averagers while an average is in the model."""
    if isinstance(tree, Mapping):
        raw = tree.get("raw")
        if "averaging" in tree and isinstance(raw, Mapping) and raw.keys() == {"params", "statistics"}:
            if any(array.numel for _, array in leaves(raw)):
                yield raw
        else:
            for inner in tree.values():
                yield from _raw(inner)

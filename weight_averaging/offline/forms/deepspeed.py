"""Folders of DeepSpeed's ZeRO, `global_step200/`: the float32 weights that the optimizers of all ranks hold.

- `*_model_states.pt`: `module`, a copy in bfloat16 or float16 (ZeRO-3: without elements), `param_shapes` in groups.
- `*zero_pp_rank_R_mp_rank_00_optim_states.pt`: the rank's part of the float32 weights. ZeRO-1 and 2 lay the weights of
  a group end to end and cut that into a part for each rank; ZeRO-3 cuts each weight.
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weight_averaging.averages import SnapshotError
from weight_averaging.offline.forms.contents.learning_rates import learning_rate
from weight_averaging.offline.forms.inert import InertFile, StandIn
from weight_averaging.offline.forms.source import Source
from weight_averaging.offline.forms.trainers import count
from weight_averaging.offline.layouts import Layout

_OPTIMIZER = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
_MODEL = re.compile(r"(?:zero_pp_rank_(\d+)_)?mp_rank_(\d+)_model_states\.pt")
_INSTEAD = "make one file of it by DeepSpeed's own tools first"

Vector = list[Tensor]  # pieces that make one, end to end


def is_zero_folder(path: Path) -> bool:
    return path.is_dir() and any(_OPTIMIZER.fullmatch(one.name) for one in path.glob("*_optim_states.pt"))


class ZeroFolder(Source):
    """The model in one folder, in float32.

    Raises:
        SnapshotError: a rank's file is missing or damaged, or ranks hold parts of the model in other ways too.
    """

    def __init__(self, path: Path, keys: Sequence[str] = ()) -> None:
        super().__init__(path)
        if keys:
            raise SnapshotError(f"{path} is of one model, and has none at --key={keys[0]}")
        models, optimizers = (
            [InertFile(file).contents for file in _by_rank(path, pattern)] for pattern in (_MODEL, _OPTIMIZER)
        )
        states = [contents["optimizer_state_dict"] for contents in optimizers]
        stage = states[0]["zero_stage"]
        stage = int(stage.args[0] if isinstance(stage, StandIn) else stage)
        ranks = states[0]["partition_count"]
        if (ranks := max(ranks) if isinstance(ranks, list) else ranks) != len(states):
            raise SnapshotError(f"{path} is of {ranks} ranks, and has the optimizer's files of {len(states)}")
        first = models[0]
        cut = _cut_weights if stage == 3 else _cut_groups
        pieces: dict[str, tuple[tuple[int, ...], Vector]] = dict(cut(first["param_shapes"], states))
        module = first["module"]
        for name in first["buffer_names"] or ():
            value = module[name]
            pieces[name] = tuple(value.shape), [value]
        frozen = dict(first.get("frozen_param_shapes") or {})
        for name, shape in frozen.items():
            parts = [one["frozen_param_fragments"][name].reshape(-1) for one in (models if stage == 3 else models[:1])]
            pieces[name] = tuple(shape), _some(parts, 0, math.prod(shape))
        for name, other in (first.get("shared_params") or {}).items():
            if other in pieces:
                pieces[name] = pieces[other]
        if lacking := [name for name in module if name not in pieces and isinstance(module[name], Tensor)]:
            raise SnapshotError(f"{path}: {lacking[0]} is in none of its optimizers' files: {_INSTEAD}")
        self._pieces = {name: pieces[name] for name in [*module, *pieces] if name in pieces}
        self.layout: Layout = {
            name: (shape, torch.float32 if parts[0].is_floating_point() else parts[0].dtype)
            for name, (shape, parts) in self._pieces.items()
        }
        self.latest = self.frozen = frozenset(frozen)
        self.form = f"folder of DeepSpeed's ZeRO-{stage}"
        kinds = {value.dtype for value in module.values() if isinstance(value, Tensor) and value.is_floating_point()}
        others = sorted(str(kind).removeprefix("torch.") for kind in kinds - {torch.float32})
        if others:
            self.note = f"averaged are the float32 weights of the optimizer, not their copy in {', '.join(others)}"
        self._rate = learning_rate([states, first])
        steps = count(first.get("global_steps"))
        self.counters = {} if steps is None else {"global_steps": steps}

    def learning_rate(self) -> float | None:
        return self._rate

    def read(self, names: list[str]) -> dict[str, Tensor]:
        found = {}
        for name in names:
            shape, dtype = self.layout[name]
            found[name] = torch.cat([part.reshape(-1).to(dtype) for part in self._pieces[name][1]]).view(shape)
        return found


def _by_rank(path: Path, pattern: re.Pattern[str]) -> list[Path]:
    found: dict[int, Path] = {}
    for file in path.iterdir():
        if (match := pattern.fullmatch(file.name)) is not None:
            if int(match[2]):
                raise SnapshotError(f"{path} is of tensor parallelism ({file.name}), which is not read: {_INSTEAD}")
            found[int(match[1] or 0)] = file
        elif file.name.endswith("_model_states.pt") and not _MODEL.fullmatch(file.name):
            raise SnapshotError(f"{path} has layers or experts apart ({file.name}), which is not read: {_INSTEAD}")
    return [found[rank] for rank in sorted(found)]


def _some(vector: Vector, start: int, number: int) -> Vector:
    """The elements of a vector from `start` on, as views of its pieces."""
    found = []
    for piece in vector:
        if number > 0 and start < piece.numel():
            found.append(piece[start : start + number])
            number -= found[-1].numel()
        start = max(0, start - piece.numel())
    if number:
        raise ValueError("the optimizers' files do not hold all weights")
    return found


def _cut_groups(
    groups: Sequence[Mapping[str, Any]], states: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, tuple[tuple[int, ...], Vector]]]:
    """ZeRO-1 and 2: of each weight its shape and pieces, by name."""
    paddings = states[0].get("param_alignment_paddings")
    for number, shapes in enumerate(groups):
        vector = [state["single_partition_of_fp32_groups"][number] for state in states]
        after = paddings[number] if paddings is not None else [0] * len(shapes)
        at = 0
        for (name, shape), padding in zip(shapes.items(), after, strict=True):
            yield name, (tuple(shape), _some(vector, at, math.prod(shape)))
            at += math.prod(shape) + padding


def _cut_weights(
    groups: Sequence[Mapping[str, Any]], states: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, tuple[tuple[int, ...], Vector]]]:
    """ZeRO-3: the same."""
    vectors = [list(state["fp32_flat_groups"]) for state in states]
    at = 0
    for name, shape in itertools.chain.from_iterable(shapes.items() for shapes in groups):
        number = math.prod(shape)
        part = -(-number // len(vectors))
        pieces = [piece for vector in vectors for piece in _some(vector, at, part)]
        yield name, (tuple(shape), _some(pieces, 0, number))
        at += part

"""Metrics that checkpoints hold of themselves: a validation loss, an accuracy.

- Numbers at a key of the checkpoint, dots leading further in: timm's `metric`, fairseq's `extra_state.val_loss`.
- Lightning: what its ModelCheckpoint has for the file of this name in `best_k_models`, and its `mode`. `current_score`
  is not taken: in files that another callback wrote it is that of an earlier one.
- Hugging Face: what `log_history` of `trainer_state.json` has for the checkpoint's own step.
- Strings in the metadata of safetensors.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from weight_averaging.offline.forms.contents import is_for_training, is_state_dict, number
from weight_averaging.offline.forms.trainers import EPOCH_KEYS, STEP_KEYS

_MOST = 1000  # numbers of a checkpoint that are looked at
_MODE = re.compile(r"'mode': '(min|max)'")  # in the key of a ModelCheckpoint's state


class Score(NamedTuple):
    """The value of a metric.

    Attributes:
        where: it is from, in words.
        mode: "min" or "max", where the trainer says which values are better; else empty.
    """

    value: float
    where: str
    mode: str = ""


def scores_of(contents: Any, path: Path) -> dict[str, Score]:
    """The metrics in a checkpoint of torch.save, by name: the key that leads there, or what Lightning monitors."""
    if not isinstance(contents, Mapping):
        return {}
    found: dict[str, Score] = {}
    seen = {id(contents)}
    left: list[tuple[str, Mapping[Any, Any]]] = [("", contents)]
    while left and len(found) < _MOST:
        place, mapping = left.pop()
        for key, value in mapping.items():
            name = f"{place}.{key}" if place else str(key)
            if isinstance(value, Mapping):
                if id(value) not in seen and not is_for_training(key, value) and not is_state_dict(value):
                    left.append((name, value))
                seen.add(id(value))
            elif key not in (*STEP_KEYS, *EPOCH_KEYS) and (one := number(value)) is not None:
                found[name] = Score(one, f"{name} in it")
    return found | _lightnings(contents.get("callbacks"), path)


def _lightnings(callbacks: Any, path: Path) -> dict[str, Score]:
    found = {}
    for key, state in callbacks.items() if isinstance(callbacks, Mapping) else ():
        monitor = state.get("monitor") if isinstance(state, Mapping) else None
        scores = state.get("best_k_models") if isinstance(state, Mapping) else None
        if not isinstance(monitor, str) or not isinstance(scores, Mapping):
            continue
        mode = _MODE.search(str(key))
        for saved, value in scores.items():
            own = isinstance(saved, str) and re.split(r"[/\\]", saved)[-1] == path.name
            if own and (one := number(value)) is not None:
                found[monitor] = Score(one, "what Lightning's ModelCheckpoint has in it", mode[1] if mode else "")
    return found


def scores_of_log(history: Any, step: int | None) -> dict[str, Score]:
    """Those that `log_history` of a Trainer has for a step."""
    found = {}
    for entry in history if isinstance(history, list) and step is not None else ():
        if isinstance(entry, Mapping) and entry.get("step") == step:
            for key, value in entry.items():
                if key not in (*STEP_KEYS, *EPOCH_KEYS) and (one := number(value)) is not None:
                    found[str(key)] = Score(one, "log_history in its trainer_state.json, at its own step")
    return found


def scores_of_strings(metadata: Mapping[str, str]) -> dict[str, Score]:
    """Those among strings."""
    found = {}
    for key, text in metadata.items():
        if key not in (*STEP_KEYS, *EPOCH_KEYS) and re.fullmatch(r"[+-]?\d+\.?\d*(e[+-]?\d+)?|nan|-?inf", text.lower()):
            found[key] = Score(float(text), f"{key} in its metadata")
    return found

"""Models of stable-baselines3: a zip with a file of torch.save for the policy, for each optimizer, and settings.

`policy.pth` has the state dicts of all networks (actor, critic and its target). `load` asks for the optimizers
too: they stay those of the latest.
"""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from weight_averaging.averages import SnapshotError
from weight_averaging.offline.forms.contents import is_for_training, is_state_dict
from weight_averaging.offline.forms.source import NoModelError, WholeFile, joined
from weight_averaging.offline.forms.trainers import count
from weight_averaging.offline.layouts import layout_of

_POLICY, _ABOUT = "policy.pth", "weight_averaging.json"


def is_stable_baselines(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return _POLICY in file.namelist()


class StableBaselinesSource(WholeFile):
    """One zip, whose weights are held in memory.

    Raises:
        SnapshotError: it is damaged, would run code, or has no model at one of `keys`.
    """

    form = "model of stable-baselines3"
    loading = 'ALGORITHM.load("{path}"), where that is PPO, SAC, ...'
    own_names = True

    def __init__(self, path: Path, keys: Sequence[str] = ()) -> None:
        super().__init__(path)
        models: dict[str, Mapping[str, Any]] = {}
        kept: list[str] = []
        try:
            with zipfile.ZipFile(path) as file:  # which compares checksums
                names = [name for name in file.namelist() if name.endswith(".pth")]
                for name in sorted(names, key=lambda name: name != _POLICY):
                    contents = torch.load(io.BytesIO(file.read(name)), map_location="cpu", weights_only=True)
                    if is_state_dict(contents) and not is_for_training(None, contents) and "variables" not in name:
                        models[name.removesuffix(".pth")] = contents
                    elif contents:
                        kept.append(name)
                settings = json.loads(file.read("data")) if "data" in file.namelist() else {}
                about = json.loads(file.read(_ABOUT)) if _ABOUT in file.namelist() else {}
        except Exception as error:  # what torch raises for a damaged file depends on where the damage is
            line = " ".join(str(error).split())[:120]
            raise SnapshotError(f"{path}, a model of stable-baselines3, is damaged or refused: {line}") from None
        for key in keys:
            if key not in models:
                raise SnapshotError(f"{path} has no model at --key={key}; it has some at {', '.join(models)}")
        if not models:
            raise NoModelError(f"{path} has no weights in {_POLICY}", for_training=False)
        self._settings = settings if isinstance(settings, dict) else {}
        self.average = str(about.get("average", "")) if isinstance(about, dict) else ""
        if (steps := self.counter("num_timesteps")) is not None:
            self.counters = {"num_timesteps": steps}
        self.files: dict[str, tuple[str, str]] = {}  # of each tensor the file in the zip, and its name there
        self._tensors: dict[str, Tensor] = {}
        for number, (key, model) in enumerate((key, models[key]) for key in (keys or models)):
            state = {joined(key, name) if number else name: value for name, value in model.items()}
            self._tensors |= state
            self.files |= {own: (f"{key}.pth", name) for own, name in zip(state, model)}
            if number:
                self.others |= layout_of(state)
            else:
                self.layout = layout_of(state)
        if kept:
            self.note = f"an average keeps {', '.join(kept)} of the latest: stable-baselines3 loads no model without"

    def counter(self, key: str) -> int | None:
        return count(self._settings.get(key))

    def read(self, names: list[str]) -> dict[str, Tensor]:
        return {name: self._tensors[name] for name in names}

    def fits(self, path: Path) -> bool:
        return path.suffix == ".zip"

    def write(self, state: Mapping[str, Tensor], file: IO[bytes], about: Mapping[str, str]) -> None:
        models: dict[str, dict[str, Tensor]] = {}
        for name, value in state.items():
            inside, own = self.files[name]
            models.setdefault(inside, {})[own] = value
        with zipfile.ZipFile(self.path) as old, zipfile.ZipFile(file, "w") as new:
            for info in old.infolist():
                if info.filename in models:
                    with new.open(info.filename, "w", force_zip64=True) as member:
                        torch.save(models[info.filename], member)
                elif info.filename != _ABOUT:
                    new.writestr(info, old.read(info))
            new.writestr(_ABOUT, json.dumps(dict(about)))

"""Files of torch.save that known trainers write: how each is told from others, and what its users load it with.

- Lightning, `epoch=E-step=S.ckpt`: `state_dict`, `global_step`, `epoch`, `pytorch-lightning_version`.
- timm, `checkpoint-E.pth.tar`: `state_dict`, `epoch`, `arch`, `optimizer`; `args` is an argparse.Namespace.
- fairseq, `checkpointE.pt` and `checkpoint_E_S.pt`: `model`, and `num_updates` in the last entry of
  `optimizer_history`; `cfg` or `args`.
- fastai, `model_E.pth`: `model` and `opt`, or the state dict alone.
- ESPnet, `Eepoch.pth`: the state dict alone.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Where checkpoints keep the model's state dict; the first is the official harness's.
MODEL_KEYS = ("model_params", "model_state_dict", "model", "state_dict", "module", "net")


# Where checkpoints say how far training was: completed updates, or epochs.
STEP_KEYS = (
    "global_step", "global_steps", "step", "steps", "step_count", "iteration", "iter", "iter_num", "num_updates",
    "updates", "completed_steps", "num_steps", "num_timesteps",
)  # fmt: skip
EPOCH_KEYS = ("epoch", "epochs", "epochs_run")
_FAIRSEQ = "optimizer_history"  # a list whose last entry has them


class About(NamedTuple):
    """What a file is, and how its users load one (`{path}` is where it is)."""

    form: str
    loading: str


def about(path: Path, contents: Any, model_key: str | None) -> About:
    """Args: contents: of a file of torch.save; model_key: under which its model's state dict is, None if at the top."""
    if not isinstance(contents, Mapping) or model_key is None:
        form = "ESPnet epoch" if re.fullmatch(r"\d+epoch", path.stem) else "state dict"
        return About(form, 'model.load_state_dict(torch.load("{path}"))')
    if is_fastais(contents):
        return About("fastai checkpoint", 'model.load_state_dict(torch.load("{path}")), or learn.load')
    if "pytorch-lightning_version" in contents:
        return About("Lightning checkpoint", 'YourModule.load_from_checkpoint("{path}")')
    if _fairseqs(contents):
        return About("fairseq checkpoint", "fairseq-generate DATA --path {path}")
    if model_key == "state_dict" and isinstance(contents.get("arch"), str):
        return About("timm checkpoint", f'timm.create_model("{contents["arch"]}", checkpoint_path="{{path}}")')
    place = model_key if model_key in contents else '"]["'.join(model_key.split("."))
    loading = f'model.load_state_dict(torch.load("{{path}}")["{place}"])'
    return About(f"checkpoint with its model under {model_key}", loading)


def counters_of(contents: Mapping[Any, Any]) -> dict[str, int]:
    """How far training was, by the key that says it."""
    found = {key: count(contents.get(key)) for key in (*STEP_KEYS, *EPOCH_KEYS)}
    found["num_updates"] = count(_fairseqs(contents).get("num_updates")) or found["num_updates"]
    return {key: number for key, number in found.items() if number is not None}


def _fairseqs(contents: Mapping[Any, Any]) -> Mapping[Any, Any]:
    history = contents.get(_FAIRSEQ)
    return history[-1] if isinstance(history, list) and history and isinstance(history[-1], Mapping) else {}


def lightnings_average(contents: Any, state: Mapping[str, Any]) -> str:
    """What average Lightning's StochasticWeightAveraging left in the model, at the end of a run; else empty."""
    callbacks = contents.get("callbacks") if isinstance(contents, Mapping) else None
    for saved in callbacks.values() if isinstance(callbacks, Mapping) else ():
        average = saved.get("average_model_state") if isinstance(saved, Mapping) else None
        if isinstance(average, Mapping) and average and all(
            isinstance(value, Tensor) and isinstance(state.get(name), Tensor) and torch.equal(value, state[name])
            for name, value in average.items()
        ):  # fmt: skip
            return "Lightning's StochasticWeightAveraging"
    return ""


def is_fastais(contents: Mapping[Any, Any]) -> bool:
    """Whether fastai's Learner.save wrote it with its optimizer: `load` takes both, or a state dict alone."""
    optimizer = contents.get("opt")
    return contents.keys() == {"model", "opt"} and isinstance(optimizer, Mapping) and "hypers" in optimizer


def is_mmengines_ema(contents: Mapping[Any, Any]) -> bool:
    """Whether mmengine's EMAHook has changed the places of the EMA and the raw weights, as it does when it saves."""
    meta = contents.get("meta")
    return (
        isinstance(meta, Mapping) and "mmengine_version" in meta and isinstance(contents.get("ema_state_dict"), Mapping)
    )


def count(value: Any) -> int | None:
    """A number of updates or epochs, also as a tensor, a NumPy number or a float; None if it is none."""
    if isinstance(value, bool) or (isinstance(value, Tensor) and (value.numel() != 1 or value.dtype == torch.bool)):
        return None
    if isinstance(value, Tensor) or type(value).__module__ == "numpy":
        if not hasattr(value, "item") or getattr(value, "size", 1) == 0:
            return None
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None

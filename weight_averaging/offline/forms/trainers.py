"""Files of torch.save that known trainers write: how each is told from others, and what its users load it with.

- Lightning, `epoch=E-step=S.ckpt`: `state_dict`, `global_step`, `epoch`, `pytorch-lightning_version`.
- timm, `checkpoint-E.pth.tar`: `state_dict`, `epoch`, `arch`, `optimizer`; `args` is an argparse.Namespace.
- fairseq, `checkpointE.pt` and `checkpoint_E_S.pt`: `model`, and `num_updates` in the last entry of
  `optimizer_history`; `cfg` or `args`.
- ESPnet, `Eepoch.pth`: the state dict alone.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

# Where checkpoints keep the model's state dict; the first is the official harness's.
MODEL_KEYS = ("model_params", "model_state_dict", "model", "state_dict", "module", "net")


class About(NamedTuple):
    """What a file is, how far training was, and how its users load one (`{path}` is where it is)."""

    form: str
    step: int | None
    epoch: int | None
    loading: str


def about(path: Path, contents: Any, model_key: str | None) -> About:
    """Args: contents: of a file of torch.save; model_key: under which its model's state dict is, None if at the top."""
    if not isinstance(contents, Mapping) or model_key is None:
        form = "ESPnet epoch" if re.fullmatch(r"\d+epoch", path.stem) else "state dict"
        return About(form, None, None, 'model.load_state_dict(torch.load("{path}"))')
    step, epoch = _count(contents.get("global_step")), _count(contents.get("epoch"))
    if "pytorch-lightning_version" in contents:
        return About("Lightning checkpoint", step, epoch, 'YourModule.load_from_checkpoint("{path}")')
    history = contents.get("optimizer_history")
    if isinstance(history, list) and history and isinstance(history[-1], Mapping):
        updates = _count(history[-1].get("num_updates")) or None
        return About("fairseq checkpoint", updates, epoch, "fairseq-generate DATA --path {path}")
    if model_key == "state_dict" and isinstance(contents.get("arch"), str):
        loading = f'timm.create_model("{contents["arch"]}", checkpoint_path="{{path}}")'
        return About("timm checkpoint", step, epoch, loading)
    loading = f'model.load_state_dict(torch.load("{{path}}")["{model_key}"])'
    return About(f"checkpoint with its model under {model_key}", step, epoch, loading)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None

"""Folders with files of torch.save that libraries know by their names: litgpt's, and SpeechBrain's.

- litgpt, `step-00000200/lit_model.pth`, or `lit_model.pth.lora`: `model`, and `step_count` after pretraining; with
  config and tokenizer.
- SpeechBrain, `CKPT+2026-01-31+12-00-00+00/`: `CKPT.yaml`, and a `.ckpt` for every object that its Checkpointer has: a
  module's state dict, an optimizer's, or text (`counter.ckpt`, `brain.ckpt`). Its recovery asks for all of them.
"""

import re
import zipfile
from pathlib import Path

from weight_averaging.offline.remote import present

LITGPTS = ("lit_model.pth", "lit_model.pth.lora", "lit_model.pth.adapter", "lit_model.pth.adapter_v2")
_OF_SPEECHBRAIN = "CKPT.yaml"
# Counters in SpeechBrain's files of text: one of its EpochCounter alone, one of its Brain.
_EPOCH = re.compile(r"\s*(\d{1,18})\s*")
_UPDATES = re.compile(r"^optimizer_step: (\d{1,18})$", re.MULTILINE)
_NO_MODEL = re.compile(r"opt|sched|scaler|normali|noam")
_MOST_OF_TEXT = 1 << 16


def weights_in(path: Path) -> str | None:
    """The file with the weights of the main model, if it is such a folder."""
    for name in LITGPTS:
        if (path / name).is_file():
            return name
    if not is_speechbrains(path):
        return None
    names = sorted(one.name for one in path.glob("*.ckpt") if zipfile.is_zipfile(one))
    names.sort(key=lambda name: (name != "model.ckpt", bool(_NO_MODEL.search(name)), "model" not in name))
    return names[0] if names else None


def library_of(path: Path, name: str) -> str:
    """Whose folder it is, with its main model in the file of this name; empty if it is neither's."""
    return "SpeechBrain" if is_speechbrains(path) else "litgpt" if name in LITGPTS else ""


def is_speechbrains(path: Path) -> bool:
    """Whether it is a folder of SpeechBrain. Its files are then on this machine: what they hold says what they are."""
    found = (path / _OF_SPEECHBRAIN).is_file()
    if found:
        present(path)
    return found


def counters_in(path: Path) -> dict[str, int]:
    """How far training was, as the texts of SpeechBrain say."""
    found = {}
    for file in sorted(path.glob("*.ckpt")) if is_speechbrains(path) else ():
        if file.stat().st_size > _MOST_OF_TEXT or zipfile.is_zipfile(file):
            continue
        text = file.read_text(errors="replace")
        if epoch := _EPOCH.fullmatch(text):
            found["epoch"] = int(epoch[1])
        elif updates := _UPDATES.search(text):
            found["step"] = int(updates[1])
    return found


def loading(path: Path, name: str) -> str:
    """What loads such a folder, whose main model is in the file of this name; `{path}` is where it is."""
    if is_speechbrains(path):
        return f'model.load_state_dict(torch.load("{{path}}/{name}"))'
    if name == LITGPTS[0]:
        return 'litgpt.LLM.load("{path}")'
    return f'model.load_state_dict(torch.load("{{path}}/{name}")["model"], strict=False)'

"""Where the weights are in a folder of Hugging Face, or of a library whose folders are like those."""

import re
from pathlib import Path

from weight_averaging.averages import SnapshotError
from weight_averaging.offline.forms import folders_by_name

_STEMS = ("model", "pytorch_model", "adapter_model", "diffusion_pytorch_model")
VARIANT = re.compile(rf"({'|'.join(_STEMS)})\.(?:(\w+)\.(?:safetensors|bin)|safetensors\.index\.(\w+)\.json)")
_INDEX = ".index.json"
_MAIN = ("unet", "transformer", "prior", "controlnet")  # of several models of diffusers
_FOLDER_OF_OTHERS = re.compile(r"\..*|runs|logs|wandb|(checkpoint|ckpt|global_step|step|epoch|iter)[-_]?\d+")


def is_folder(path: Path) -> bool:
    return weights(path) is not None


def is_run_in(path: Path) -> bool:
    """Whether a folder below one of Hugging Face is a checkpoint of its own, and not a part of that."""
    return bool(_FOLDER_OF_OTHERS.fullmatch(path.name))


def weights(path: Path) -> str | None:
    """The file that has the weights, or the index of those that have; it may be in a folder below."""
    if found := weights_in(path):
        return found
    parts = [
        part
        for part in sorted(path.iterdir() if path.is_dir() else ())
        if part.is_dir() and not is_run_in(part) and (part / "config.json").is_file() and weights_in(part)
    ]
    if not any('"_class_name"' in (part / "config.json").read_text(errors="replace") for part in parts):
        return None
    parts.sort(key=lambda part: _MAIN.index(part.name) if part.name in _MAIN else len(_MAIN))
    return f"{parts[0].name}/{weights_in(parts[0])}"


def weights_in(path: Path) -> str | None:
    for suffix in (".safetensors", ".bin"):
        for stem in _STEMS:
            for name in (f"{stem}{suffix}", f"{stem}{suffix}{_INDEX}"):
                if (path / name).is_file():
                    return name
    names = [one.name for one in path.iterdir() if VARIANT.fullmatch(one.name)] if path.is_dir() else []
    return min(names, default=None) or folders_by_name.weights_in(path)


def chosen(path: Path, key: str) -> str:
    """The same of the model at a key: the name of a file, or of a folder below."""
    inner = path / key
    if inner.is_file() and Path(key).suffix in (".safetensors", ".bin", ".pth", ".ckpt"):
        return key
    found = weights_in(inner) if inner.resolve().is_relative_to(path.resolve()) else None
    if found is None:
        raise SnapshotError(f"{path} has no weights at --key={key}, the name of a folder or file in it")
    return f"{key.rstrip('/')}/{found}"

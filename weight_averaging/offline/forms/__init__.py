"""Forms of checkpoints as trainers write them: which files and folders are some, and what opens each."""

import contextlib
import re
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path

from weight_averaging.averages import SnapshotError
from weight_averaging.offline.forms import orbax
from weight_averaging.offline.forms.damage import reading
from weight_averaging.offline.forms.deepspeed import ZeroFolder, is_zero_folder
from weight_averaging.offline.forms.distributed import ShardedFolder
from weight_averaging.offline.forms.equinox import EquinoxSource
from weight_averaging.offline.forms.flax_file import FlaxSource
from weight_averaging.offline.forms.hugging_face import HuggingFaceSource
from weight_averaging.offline.forms.safetensors_file import SafetensorsSource
from weight_averaging.offline.forms.source import Source
from weight_averaging.offline.forms.stable_baselines import StableBaselinesSource, is_stable_baselines
from weight_averaging.offline.forms.strangers import is_msgpack, is_orbax, other_folder
from weight_averaging.offline.forms.torch_file import TorchSource
from weight_averaging.offline.forms.weights_of_folder import is_folder
from weight_averaging.offline.forms.whole_modules import ModulesSource, with_modules
from weight_averaging.offline.remote import present

WANTED = (
    "*.pt, *.pth, *.pth.tar, *.ckpt, *.safetensors, *.msgpack, *.eqx, checkpoint_STEP, folders of Hugging Face "
    "(checkpoint-STEP), torch.distributed.checkpoint, DeepSpeed, Orbax, ..."
)
INSTEAD_OF_FOLDERS = (
    "install orbax-checkpoint where it is Orbax's, or restore it, and save the tree by flax.serialization.to_bytes"
)
_NAMES = re.compile(r"checkpoint_\d+|.+\.(pt|pth|pth\.tar|ckpt|safetensors|msgpack|eqx)", re.DOTALL)


def is_checkpoint(path: Path) -> bool:
    """Whether an entry of a folder looks like a checkpoint; only a zip is opened."""
    if path.name.startswith("."):
        return False
    if path.is_dir():
        return (path / ".metadata").is_file() or is_folder(path) or is_zero_folder(path) or _is_orbax(path)
    if path.suffix == ".zip":
        with contextlib.suppress(OSError, zipfile.BadZipFile):
            return is_stable_baselines(present(path))
    return bool(_NAMES.fullmatch(path.name))


def open_checkpoint(path: Path, allow: Collection[str] = (), keys: Sequence[str] = ()) -> Source:
    """The checkpoint at `path`.

    Args:
        allow: see `pickles.load_file`.
        keys: of the models in it that are wanted, the main one first; none: all.
    Raises:
        SnapshotError: it cannot be read, is damaged, would run code, or holds no model; the message names the file.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise SnapshotError(f"{shown(path)}: its name is no UTF-8, and torch opens no such file: rename it") from None
    with reading(path):
        if path.is_file():
            present(path)
        if (path / ".metadata").is_file():
            return ShardedFolder(present(path), keys)
        if is_folder(path):
            return HuggingFaceSource(path, allow, keys)
        if is_zero_folder(path):
            return ZeroFolder(present(path), keys)
        if _is_orbax(path) and orbax.is_installed():
            return orbax.OrbaxFolder(present(path), keys)
        if path.is_dir() and (other := other_folder(path)):
            raise SnapshotError(f"{path} is {other}, which is not read: {INSTEAD_OF_FOLDERS}")
        if path.is_dir():
            raise SnapshotError(f"{path} is a folder without weights in it: {WANTED}")
        if path.suffix == ".safetensors":
            if keys:
                raise SnapshotError(f"{path} is one state dict, and has none at --key={keys[0]}")
            return SafetensorsSource(path)
        if path.suffix == ".eqx" and path.is_file():
            return EquinoxSource(path, keys)
        if path.is_file() and is_stable_baselines(path):
            return StableBaselinesSource(path, keys)
        return FlaxSource(path, keys) if path.is_file() and is_msgpack(path) else _of_torch(path, allow, keys)


def _is_orbax(path: Path) -> bool:
    return path.is_dir() and is_orbax(path) and ".orbax-checkpoint-tmp" not in path.name


def _of_torch(path: Path, allow: Collection[str], keys: Sequence[str]) -> Source:
    try:
        return TorchSource(path, allow, keys)
    except SnapshotError:
        file = None
        with contextlib.suppress(Exception):  # it may be anything: what is said of it is what stopped TorchSource
            file = with_modules(path)
        if file is None:
            raise
    return ModulesSource(path, file, keys)


def shown(path: Path) -> str:
    """A path as text that can be printed, also where its bytes are no UTF-8."""
    return str(path).encode(errors="backslashreplace").decode()

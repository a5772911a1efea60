"""Snapshots on disk during training: parameters and buffers every so many updates, for averaging afterwards.

    with SnapshotWriter("snapshots", interval=64, metadata={"seed": 0}) as writer:
        for step, batch in enumerate(batches, start=1):
            train_on(batch)
            optimizer.step()
            writer.update(step, model)

Training waits for one copy of the weights in memory; a thread brings it to disk. `weight_averaging.offline.Snapshots`
and the command `weight-averaging average` read the folder. Of replicas (DDP) one rank has the writer. Of a model with
DTensors (FSDP2) all ranks have one and call `update`, which gathers. The first rank writes.
"""

import json
import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from weight_averaging.atomic_file import is_old, replacing
from weight_averaging.averages import SnapshotError
from weight_averaging.averages.checks import check_count
from weight_averaging.averages.schedule import is_due
from weight_averaging.offline.claims import FolderClaim
from weight_averaging.offline.safetensors_files import FROZEN, LATEST, LEFT, MANIFEST, SafetensorsWriter, sha256
from weight_averaging.tensor_names import without_wrappers
from weight_averaging.torch.model.selection import FROZEN as FROZEN_PARAMETERS
from weight_averaging.torch.model.selection import Selection, is_packed
from weight_averaging.torch.model.tensors import is_sharded, whole
from weight_averaging.torch.model.wrappers import unwrapped
from weight_averaging.torch.swap import refuse_average_in

FORMAT = 1


class SnapshotWriter:
    """Writes `step_<step>.safetensors` files and their manifest into a folder.

    A file is in place only when it is whole, and the manifest names it only then. So a kill at any moment leaves a
    readable folder. A run that resumes from a checkpoint writes the same files again. Where it writes others, it has
    taken another course: later files of the earlier course are left out by `Snapshots` until they are written over.
    Before saving that checkpoint call `flush`, so that the snapshots up to it are on disk.

    Args:
        folder: created if need be.
        interval: updates between snapshots, nu >= 1.
        dtype: of floating-point tensors on disk: None as they are, or torch.bfloat16, say.
        metadata: about the run, for the manifest: anything that JSON can hold, under names.
        keep: tells of a step whether its snapshot is wanted, for instance `set(plan.needed).__contains__` of an
            `offline.Plan` for the averages that will be asked for; default: all.
    Raises:
        SnapshotError: the folder holds snapshots of another interval, type or metadata; or JSON cannot hold these.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        interval: int,
        dtype: torch.dtype | None = None,
        metadata: Mapping[str, Any] | None = None,
        keep: Callable[[int], bool] = lambda step: True,
    ) -> None:
        self.folder = Path(folder)
        self.interval = check_count("interval", interval)
        self._dtype = dtype
        self._keep = keep
        self.folder.mkdir(parents=True, exist_ok=True)
        about = {
            "interval": self.interval,
            "dtype": None if dtype is None else str(dtype),
            "metadata": _as_json(dict(metadata or {})),
        }
        self._new: dict[str, Any] = {"format": FORMAT, **about, "snapshots": []}
        if (self.folder / MANIFEST).exists():
            there = read_manifest(self.folder)
            for name, value in about.items():
                if there[name] != value:
                    raise SnapshotError(f"{self.folder} holds snapshots with {name}={there[name]!r}, not {value!r}")
        self._claim = FolderClaim(self.folder)
        # One snapshot waits at most: memory stays at two, and a slow disk slows training rather than filling memory.
        self._queue: queue.Queue[tuple[int, dict[str, Tensor], dict[str, str]] | None] = queue.Queue(maxsize=1)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="snapshots", daemon=True)
        self._thread.start()

    def disk_use(self, model: nn.Module, steps: int) -> int:
        """Bytes that the snapshots of a model take in a run of `steps` updates."""
        count = sum(1 for step in range(self.interval, steps + 1, self.interval) if self._keep(step))
        each: int = sum(tensor.numel() * self._type(tensor).itemsize for tensor in model.state_dict().values())
        return count * each

    def update(self, step: int, model: nn.Module) -> bool:
        """Tell that `step` optimizer updates are complete; copies the weights where a snapshot is due.

        Of a model with DTensors (FSDP2) all ranks call it, and it is collective where a snapshot is due.

        Returns:
            Whether a snapshot was taken.
        Raises:
            SnapshotError: the writer is closed, an earlier snapshot could not be written, or another writer has the
                folder. So it is where the model's weights cannot be had whole (FSDP1, packed tensors).
            RuntimeError: the average of an averager is in the model.
        """
        self._check()
        if not self._thread.is_alive():
            raise SnapshotError(f"update({step}) of a SnapshotWriter that is closed: {self.folder} takes no more")
        if not is_due(step, self.interval) or not self._keep(step):
            return False
        refuse_average_in(model, f"update({step})")
        left_out = Selection(buffers=True).of(model).left_out
        state = {n: t for n, t in unwrapped(model).state_dict().items() if isinstance(t, Tensor)}
        refuse_what_is_not_whole(model, state)
        writes = is_first_rank(state.values())
        if writes:
            self._claim.take()
        copies = {}
        for name, tensor in state.items():
            full = whole(tensor)
            if writes:
                copies[without_wrappers(name)] = full.detach().to(
                    "cpu", self._type(full), copy=True, memory_format=torch.contiguous_format
                )
        if not writes:
            return True
        latest = [name for names in left_out.values() for name in names if name in copies]
        frozen = [name for name in left_out.get(FROZEN_PARAMETERS, ()) if name in copies]
        self._queue.put((step, copies, {LATEST: json.dumps(latest), FROZEN: json.dumps(frozen)}))
        return True

    def flush(self) -> None:
        """Wait until all snapshots taken are on disk. SnapshotError if one could not be written."""
        self._queue.join()
        self._check()

    def close(self) -> None:
        """`flush`, and end the thread."""
        self._queue.join()
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        self._claim.give_up()
        self._check()

    def __enter__(self) -> "SnapshotWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _type(self, tensor: Tensor) -> torch.dtype:
        return self._dtype if self._dtype is not None and tensor.is_floating_point() else tensor.dtype

    def _check(self) -> None:
        if self._error is not None:
            raise SnapshotError(f"{self.folder}: a snapshot could not be written: {self._error}") from self._error

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                if self._error is None:
                    self._write(*item)
            except Exception as error:  # told to the training thread at its next call
                self._error = error
            finally:
                self._queue.task_done()
        self._queue.task_done()

    def _write(self, step: int, state: dict[str, Tensor], about: dict[str, str]) -> None:
        path = self.folder / _name(step)
        layout = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}
        # Names are those of the model, and what averagers leave as training has it is recorded.
        with SafetensorsWriter(path, layout, {"step": str(step), **about}) as file:
            for name, tensor in state.items():
                file.write(name, tensor)
        entry = {"step": step, "file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}
        manifest = read_manifest(self.folder) if (self.folder / MANIFEST).exists() else self._new  # pruned meanwhile?
        others = [other for other in manifest["snapshots"] if other["step"] != step]
        if any(other["step"] == step and other["sha256"] != entry["sha256"] for other in manifest["snapshots"]):
            others = [{**other, LEFT: step} if other["step"] > step else other for other in others]
        _write_manifest(self.folder, {**manifest, "snapshots": sorted([*others, entry], key=lambda item: item["step"])})


def refuse_what_is_not_whole(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """A SnapshotError if a model's tensors, its state, cannot be written as they are."""
    if any(hasattr(getattr(module, "_handle", None), "reshard") for module in model.modules()):
        raise SnapshotError("a SnapshotWriter cannot have whole weights under FSDP1: use FSDP2 (fully_shard)")
    if packed := [name for name, tensor in state.items() if is_packed(tensor)]:
        kind = type(state[packed[0]]).__name__
        raise SnapshotError(f"a SnapshotWriter cannot write {packed[0]}, a {kind}: safetensors has plain tensors only")


def is_first_rank(tensors: Iterable[Tensor]) -> bool:
    """Whether this rank is the first of all that the DTensors among `tensors` are spread over."""
    meshes = {tensor.device_mesh for tensor in tensors if is_sharded(tensor)}  # type: ignore[attr-defined]
    return all(int(mesh.mesh.min()) == mesh.get_rank() for mesh in meshes)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of snapshots. SnapshotError if there is none or it cannot be read."""
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        if manifest["format"] != FORMAT:
            raise SnapshotError(f"{path} has format {manifest['format']!r}; this version reads {FORMAT}")
        _ = [(entry["bytes"], entry["sha256"]) for entry in manifest["snapshots"]]
        if wrong := [entry for entry in manifest["snapshots"] if entry["file"] != _name(entry["step"])]:
            raise SnapshotError(f"{path} is damaged: it has {wrong[0]['file']!r} for step {wrong[0]['step']!r}")
        _ = [manifest[name] for name in ("interval", "dtype", "metadata")]
    except OSError as error:
        raise SnapshotError(f"{path} cannot be read: {error.strerror}") from None
    except SnapshotError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise SnapshotError(f"{path} is damaged: {error}") from None
    return manifest


def verify(folder: Path) -> None:
    """Compare every file in a folder of snapshots with its checksum.

    Raises:
        SnapshotError: a file is gone or was changed; the first one is named.
    """
    for entry in read_manifest(folder)["snapshots"]:
        path = folder / entry["file"]
        if not path.exists():
            raise SnapshotError(f"{path} is in the manifest and not there")
        if path.stat().st_size != entry["bytes"] or sha256(path) != entry["sha256"]:
            raise SnapshotError(f"{path} is not as it was written: its checksum differs")


def prune(folder: Path, needed: Iterable[int]) -> int:
    """Delete the snapshots whose steps are not needed.

    Files of snapshots that the manifest does not name go too, ten minutes after they were written: a kill left them.

    Args:
        folder: of a `SnapshotWriter`.
        needed: `offline.Plan(...).needed`, of all averages to be made.
    Returns:
        The bytes freed.
    Raises:
        SnapshotError: a needed one is not there; nothing is deleted.
    """
    manifest = read_manifest(folder)
    wanted = set(needed)
    if missing := sorted(wanted - {entry["step"] for entry in manifest["snapshots"]}):
        raise SnapshotError(f"{folder} has no snapshot of step {missing[0]}, which is to be kept")
    gone = [entry for entry in manifest["snapshots"] if entry["step"] not in wanted]
    named = {entry["file"] for entry in manifest["snapshots"]}
    # By an earlier call that was killed; what is new a writer is about to name.
    left = [path for path in folder.glob("step_*.safetensors") if path.name not in named and is_old(path)]
    manifest["snapshots"] = [entry for entry in manifest["snapshots"] if entry["step"] in wanted]
    _write_manifest(folder, manifest)  # first: it never names a file that is not there
    freed: int = sum(entry["bytes"] for entry in gone) + sum(path.stat().st_size for path in left)
    for path in (*left, *(folder / entry["file"] for entry in gone)):
        path.unlink(missing_ok=True)
    return freed


def _name(step: int) -> str:
    return f"step_{step:08d}.safetensors"


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    with replacing(folder / MANIFEST) as file:
        file.write(json.dumps(manifest, indent=1).encode())


def _as_json(metadata: dict[str, Any]) -> Any:
    """What a manifest gives back for `metadata`."""
    for name, value in metadata.items():
        try:
            json.dumps({name: value}, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise SnapshotError(f"metadata: JSON cannot hold {name}={value!r} ({error}): give str() of it") from None
    return json.loads(json.dumps(metadata))

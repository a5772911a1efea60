"""PyTorch under the runner: a model is a module, an optimizer state a dictionary of what has a state_dict.

With torchrun there are ranks, which train replicas; the model is then in DistributedDataParallel. What is saved is the
model itself, so that any number of ranks can go on from it, compiled or not.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist

from miniperf.frameworks import OneProcess, Value
from miniperf.pytorch_utils import bare, process_group, pytorch_setup
from weight_averaging.offline.recording import SnapshotWriter

_DDP, RANK, DEVICE, RANKS = pytorch_setup()


class PyTorch(OneProcess):
    name = "pytorch"
    rank = RANK

    def connected(self) -> contextlib.AbstractContextManager[None]:
        return process_group()

    @contextlib.contextmanager
    def first(self) -> Iterator[None]:
        if RANKS > 1 and RANK > 0:
            dist.barrier()
        yield
        if RANKS > 1 and RANK == 0:
            dist.barrier()

    def agree(self, value: Value) -> Value:
        if RANKS == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, device=torch.device("cpu"))
        return values[0]

    def compiled(self, model: torch.nn.Module) -> torch.nn.Module:
        return torch.compile(model)  # type: ignore[return-value]  # a module, says its own documentation

    def begin(self) -> None:
        torch.set_num_threads(1)

    def key(self, pair: Any) -> Any:
        return pair

    def seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def random_state(self) -> torch.Tensor:
        return torch.get_rng_state()

    def set_random_state(self, state: torch.Tensor) -> None:
        torch.set_rng_state(state.cpu())

    def wait(self, model: torch.nn.Module) -> None:
        """On the CPU an operation is done when it returns."""
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    def learning_rate(self, optimizer_state: Any) -> float | None:
        optimizer = optimizer_state.get("optimizer") if isinstance(optimizer_state, dict) else None
        groups = getattr(optimizer, "param_groups", None)
        return groups[0]["lr"] if groups else None

    def state(self, model: torch.nn.Module, optimizer_state: dict[str, Any], model_state: Any) -> dict[str, Any]:
        return {
            "model_params": bare(model).state_dict(),
            "optimizer_state": {key: value.state_dict() for key, value in optimizer_state.items()},
            "model_state": model_state,
        }

    def restore(
        self, contents: Mapping[str, Any], model: torch.nn.Module, optimizer_state: dict[str, Any], model_state: Any
    ) -> tuple[torch.nn.Module, dict[str, Any], Any]:
        bare(model).load_state_dict(contents["model_params"])
        for key, value in optimizer_state.items():
            value.load_state_dict(contents["optimizer_state"][key])
        return model, optimizer_state, contents["model_state"]

    def write(self, contents: dict[str, Any], file: IO[bytes]) -> None:
        """As the official harness does. Its checksums torch.load does not compare; `checkpoints` does."""
        torch.save(contents, file)

    def read(self, path: Path) -> dict[str, Any]:
        return torch.load(path, map_location="cpu", weights_only=True)

    def nbytes(self, contents: Any) -> int:
        if isinstance(contents, torch.Tensor):
            return contents.nbytes
        nested = isinstance(contents, list | tuple)
        items = contents.values() if isinstance(contents, dict) else contents if nested else ()
        return sum(map(self.nbytes, items))

    def snapshot_writer(self, folder: Path, interval: int, about: dict[str, Any]) -> SnapshotWriter:
        return SnapshotWriter(folder, interval=interval, metadata=about)

    def versions(self) -> dict[str, str]:
        return {"torch_version": torch.__version__}


FRAMEWORK = PyTorch()

"""What a rehearsal has to know of PyTorch and of JAX: sampling weights, waiting, memory."""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from launching.rehearsal.record import places


class Framework(Protocol):
    def sizes_of(self, params: Any) -> None:
        """Remember how many entries each tensor has: restored ones come back with an axis too many in JAX."""

    def samples(self, params: Any) -> list[np.ndarray]:
        """The kept entries of every parameter, now."""

    def watch(self, params: Any, tell: Callable[[list[np.ndarray]], None]) -> None:
        """`tell` the kept entries of what a forward pass of training is given, compiled or not."""

    def deliver(self) -> None:
        """Have told all that was watched."""

    def wait(self, result: Any) -> None:
        """Until what was begun on the device is done."""

    def peak_gib(self) -> float | None:
        """The most memory of the device so far; None on a CPU."""


class PyTorch:
    def __init__(self) -> None:
        self.torch = importlib.import_module("torch")
        self.peak = 0.0

    def sizes_of(self, params: Any) -> None:
        pass

    def samples(self, params: Any) -> list[np.ndarray]:
        return [self._sample(p) for p in params.parameters()]

    def _sample(self, parameter: Any) -> np.ndarray:
        chosen = self.torch.as_tensor(places(parameter.numel()), device=parameter.device)
        return parameter.detach().reshape(-1)[chosen].float().cpu().numpy()

    def watch(self, params: Any, tell: Callable[[list[np.ndarray]], None]) -> None:
        tell(self.samples(params))

    def deliver(self) -> None:
        pass

    def wait(self, result: Any) -> None:
        if self.torch.cuda.is_available():
            self.torch.cuda.synchronize()

    def peak_gib(self) -> float | None:
        if not self.torch.cuda.is_available():
            return None
        # The runner resets the device's own peak at every evaluation.
        self.peak = max(self.peak, self.torch.cuda.max_memory_allocated() / 2**30)
        return self.peak


class Jax:
    def __init__(self) -> None:
        self.jax = importlib.import_module("jax")
        self.sizes: Sequence[int] = ()

    def sizes_of(self, params: Any) -> None:
        self.sizes = [leaf.size for leaf in self.jax.tree.leaves(params)]

    def _chosen(self, params: Any) -> list[Any]:
        leaves = self.jax.tree.leaves(params)
        return [leaf.reshape(-1)[places(size)] for leaf, size in zip(leaves, self.sizes, strict=True)]

    def samples(self, params: Any) -> list[np.ndarray]:
        return [np.asarray(sample) for sample in self._chosen(params)]

    def watch(self, params: Any, tell: Callable[[list[np.ndarray]], None]) -> None:
        # Within a compiled function these are no arrays: the program calls back when it has them.
        chosen = [self.jax.lax.stop_gradient(sample) for sample in self._chosen(params)]
        self.jax.debug.callback(lambda *samples: tell([np.asarray(sample) for sample in samples]), *chosen)

    def deliver(self) -> None:
        self.jax.effects_barrier()

    def wait(self, result: Any) -> None:
        self.jax.block_until_ready(result)

    def peak_gib(self) -> float | None:
        statistics = self.jax.local_devices()[0].memory_stats()
        return statistics["peak_bytes_in_use"] / 2**30 if statistics else None


def soon_compiled(cache: Path) -> dict[str, str]:
    """The environment in which XLA optimises little, and a resumed run reads what the first part has compiled.

    On a CPU nearly all of the time of a small run goes to XLA's compiler.

    Args:
        cache: a folder for what is compiled.
    """
    return {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1",
    }


def of(name: str) -> Framework:
    return PyTorch() if name == "pytorch" else Jax()

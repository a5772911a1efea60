"""What differs between the frameworks, for one loop, one clock and one form of logs: `pytorch.py` and `jax.py`.

The runner, logs and checkpoints import neither; a framework is imported when a run of it starts.
"""

import importlib
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

from weight_averaging.errors import UsageError

NAMES = ("pytorch", "jax")
PACKAGES = {"pytorch": ("torch",), "jax": ("jax", "flax", "optax")}


Value = TypeVar("Value")


class Framework(Protocol):
    """What the runner asks of a framework. What a model and an optimizer state are, only it and the submission know."""

    name: str
    rank: int  # of this process among those that train together, of which 0 alone writes

    def connected(self) -> AbstractContextManager[None]:
        """Within, the ranks can reach each other."""
        ...

    def first(self) -> AbstractContextManager[None]:
        """Within, rank 0 is through before the others begin: what it wrote is there for them."""
        ...

    def agree(self, value: Value) -> Value:
        """Rank 0's, on all ranks, which must call it together."""
        ...

    def compiled(self, model: Any) -> Any:
        """The model through the framework's compiler. UsageError where it has none to be asked for."""
        ...

    def begin(self) -> None:
        """Called once in a process, before any data or model. It sets one thread: the operations are too small to
        split, and results must not depend on the number of cores."""
        ...

    def key(self, pair: Any) -> Any:
        """The random key that a submission and a workload take, of a pair of integers (`random_utils`)."""
        ...

    def seed(self, seed: int) -> None:
        """Seed the framework's own global generator, if it has one."""
        ...

    def random_state(self) -> Any:
        """The state of that generator, for a checkpoint."""
        ...

    def set_random_state(self, state: Any) -> None: ...

    def wait(self, model: Any) -> None:
        """Return when what the model was last updated by is computed: the clock is read after it."""
        ...

    def learning_rate(self, optimizer_state: Any) -> float | None:
        """For the progress bar, if it can be told."""
        ...

    def state(self, model: Any, optimizer_state: Any, model_state: Any) -> dict[str, Any]:
        """What a checkpoint keeps, as `model_params`, `optimizer_state` and `model_state`."""
        ...

    def restore(self, contents: Mapping[str, Any], model: Any, optimizer_state: Any, model_state: Any) -> tuple:
        """Model, optimizer state and model state from a checkpoint and fresh ones of the same run.

        KeyError, RuntimeError or ValueError if they are of another submission or model."""
        ...

    def write(self, contents: dict[str, Any], file: IO[bytes]) -> None:
        """A checkpoint into an open file: a zip archive, which has checksums."""
        ...

    def read(self, path: Path) -> dict[str, Any]:
        """The contents of a checkpoint; whatever error if it is damaged."""
        ...

    def nbytes(self, contents: Any) -> int:
        """About what a checkpoint takes on disk."""
        ...

    def snapshot_writer(self, folder: Path, interval: int, about: dict[str, Any]) -> Any:
        """A writer of snapshots for averaging afterwards, with `update(step, model)`, `flush`, `close`, `disk_use`."""
        ...

    def versions(self) -> dict[str, str]: ...


class OneProcess:
    """What there is to ranks where there is one, and no compiler to be asked for."""

    rank = 0

    def connected(self) -> AbstractContextManager[None]:
        return nullcontext()

    def first(self) -> AbstractContextManager[None]:
        return nullcontext()

    def agree(self, value: Value) -> Value:
        return value

    def compiled(self, model: Any) -> Any:
        raise UsageError("--torch_compile is for --framework=pytorch")


def check(name: str) -> None:
    """UsageError if there is no framework of that name."""
    if name not in NAMES:
        raise UsageError(f"--framework={name} is unknown; choose from {', '.join(NAMES)}")


def load(name: str) -> Framework:
    """The framework of that name, imported now. UsageError if it is unknown or not installed."""
    check(name)
    try:
        for package in PACKAGES[name]:
            importlib.import_module(package)
    except ModuleNotFoundError as error:
        packages = " ".join(PACKAGES[name])
        raise UsageError(f"--framework={name}: {error.name} is not installed: pip install {packages}") from None
    return importlib.import_module(f"{__name__}.{name}").FRAMEWORK

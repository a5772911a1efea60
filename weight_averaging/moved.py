"""Names of earlier releases: they serve, with a DeprecationWarning that names the new ones."""

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

# Path of 0.2.0 -> where its names are now.
MOVED: dict[str, tuple[str, ...]] = {
    "collection": ("averages.horizon", "averages.schedule", "averages.checks"),
    "pairwise": ("averages.summation",),
    "names": ("tensor_names",),
    "filters": ("include_exclude",),
    "replacing": ("atomic_file",),
    "cost": ("cli.costs",),
    "torch.averages": ("torch.grid",),
    "torch.results": ("torch.export",),
    "torch.placement": ("torch.memory.placement",),
    "torch.pinned": ("torch.memory.pinned",),
    "torch.copies": ("torch.memory.host_copies",),
    "torch.pickling": ("torch.memory.pickling",),
    "torch.selection": ("torch.model.selection",),
    "torch.weights": ("torch.model.weights",),
    "torch.changes": ("torch.model.changes",),
    "torch.batch_norm": ("torch.model.batch_norm",),
    "torch.blocks": ("torch.model.blocks", "torch.model.finite"),
    "torch.verdict": ("torch.model.finite",),
    "torch.ranks": ("torch.model.ranks",),
    "torch.tensors": ("torch.model.tensors",),
    "torch.contexts": ("torch.model.tensors",),
    "torch.frozen": ("torch.model.frozen_probe",),
    "torch.mean": ("torch.tracks.mean",),
    "torch.new_tracks": ("torch.tracks.make",),
    "jax.host": ("jax.host_window", "jax.doors"),
    "offline.order": ("offline.reading.order",),
    "offline.fetching": ("offline.reading.fetching",),
    "offline.unaveraged": ("offline.reading.unaveraged",),
    "offline.plan": ("offline.passes.plan",),
    "offline.tracks": ("offline.passes.sums",),
    "offline.pieces": ("offline.passes.pieces",),
    "offline.cumulative": ("offline.passes.cumulative",),
    "offline.posthoc": ("offline.passes.posthoc",),
    "offline.writers": ("offline.writing.outputs",),
}


def deprecated(old: str, new: str, stacklevel: int = 2) -> None:
    """Warn that a name or an argument has another one now; `stacklevel` as of `warnings.warn` in the function calling.

    What this says stays for one minor version (docs/release.md).
    """
    warnings.warn(f"{old} is called {new} now", DeprecationWarning, stacklevel=stacklevel + 1)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Asked last, for what no file is found for."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package, _, name = fullname.partition(".")
        moved = package == __package__ and name in MOVED
        return importlib.machinery.ModuleSpec(fullname, self) if moved else None

    def exec_module(self, module: ModuleType) -> None:
        """Fill in a module that hands on the names of the new ones."""
        package, _, name = module.__name__.partition(".")
        paths = [f"{package}.{new}" for new in MOVED[name]]
        warnings.warn(
            f"{module.__name__} has moved: import from {' or '.join(paths)}", DeprecationWarning, stacklevel=2
        )

        def find(name: str) -> Any:
            for path in paths:
                if hasattr(new := importlib.import_module(path), name):
                    return getattr(new, name)
            raise AttributeError(f"module {module.__name__!r} has moved to {' or '.join(paths)} and has no {name}")

        module.__getattr__ = find  # type: ignore[method-assign]


def install() -> None:
    """Let `import` find the old paths."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())

"""Batch-norm statistics of averages, recomputed from data on the way into a file.

The statistics of averaged weights are not the average of the statistics (Izmailov et al. 2018, arXiv 1803.05407,
section 3.2).
"""

import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from weight_averaging.averages import SnapshotError
from weight_averaging.offline.layouts import Layout
from weight_averaging.offline.writing.outputs import Writer
from weight_averaging.tensor_names import clean_names
from weight_averaging.torch.model.batch_norm import named_statistics, recompute_batch_norm
from weight_averaging.words import counted, fault_of

# What gives the model and its training batches, anew for each average.
Recompute = Callable[[], tuple[nn.Module, Iterable[Any]]]

_FLAG = "--recompute-batch-norm"


class RecomputingWriter(Writer):
    """What writes an average when it is whole, with batch-norm statistics of its own instead of the averaged ones.

    The average and a model are in memory until then.

    Args:
        inner: takes everything in the end.
        recompute: gives the model that the checkpoints are of, and batches, before anything is read. A batch is the
            model's input, its inputs by name (a dict), or a tuple or list that begins with the input. It may also be a
            function that runs the model itself.
        layout: of the model, by names without what wrappers add.
        names: those that `inner` knows, by the names of `layout`; tensors of others go through.
        said: told in a line what was done.
    Raises:
        SnapshotError: the function fails, its model is another one, or has no batch norm, or there is no batch.
    """

    def __init__(
        self,
        inner: Writer,
        recompute: Recompute,
        layout: Layout,
        names: Mapping[str, str],
        said: Callable[[str], object] = lambda line: None,
    ) -> None:
        self._inner, self._recompute, self._layout, self._names, self._said = inner, recompute, layout, names, said
        self._own = {names[name]: name for name in layout}
        self._state: dict[str, Tensor] = {}

    def write_part(self, name: str, start: int, part: Tensor) -> None:
        own = self._own.get(name)
        if own is None:
            self._inner.write_part(name, start, part)
        elif part.shape == self._layout[own][0]:
            self._state[own] = part
        else:
            if own not in self._state:
                self._state[own] = torch.empty(self._layout[own][0], dtype=part.dtype)
            self._state[own].view(-1)[start : start + part.numel()].copy_(part.reshape(-1))

    def __enter__(self) -> "RecomputingWriter":
        try:
            made = self._recompute()
            if not isinstance(made, tuple) or len(made) != 2:
                raise TypeError(f"the function gives a {type(made).__name__}, not (model, batches)")
            self._model, self._batches = made
            if not isinstance(self._model, nn.Module):
                raise TypeError(
                    f"the function gives a {type(self._model).__name__} for the model, not a torch.nn.Module"
                )
        except (Exception, SystemExit) as fault:  # of the user's code: any
            raise _failed(fault) from fault
        _check_same(_tensors(self._model), self._layout)
        if not named_statistics(self._model):
            raise SnapshotError(f"{_FLAG}: the model has no batch norm that keeps statistics")
        self._inner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._put_statistics()
                for name, tensor in self._state.items():
                    self._inner.write_part(self._names[name], 0, tensor)
        except BaseException as fault:
            self._inner.__exit__(type(fault), fault, fault.__traceback__)
            raise
        self._inner.__exit__(kind, error, trace)

    def _put_statistics(self) -> None:
        with torch.no_grad():
            for name, tensor in _tensors(self._model).items():
                tensor.copy_(self._state[name])
        before = {name: tensor.clone() for name, tensor in self._statistics().items()}
        count = _run(self._model, self._batches)
        after = self._statistics()
        for name, tensor in after.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise SnapshotError(f"{_FLAG}: {name} is not finite on these batches")
            self._state[name] = tensor.to("cpu", self._state[name].dtype, copy=True)
        layers = {name.rpartition(".")[0] for name in after}
        kept = sorted(layers - {n.rpartition(".")[0] for n, tensor in after.items() if not tensor.equal(before[n])})
        but = f"; the averaged ones stay in {len(kept)} that these do not reach, as {kept[0]}" if kept else ""
        what = f"statistics of {counted(len(layers), 'batch norm')}"
        self._said(f"{what} recomputed from {counted(count, 'batch', 'batches')}{but}")

    def _statistics(self) -> dict[str, Tensor]:
        """Those of the model, by names of the layout."""
        names, own = list(self._model.state_dict()), named_statistics(self._model)
        found = zip(clean_names(names), names, self._model.state_dict().values())
        return {clean: tensor for clean, name, tensor in found if name in own}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """A model's tensors by names without what wrappers add; extra state is none."""
    state = model.state_dict()
    return {n: tensor for n, tensor in zip(clean_names(list(state)), state.values()) if isinstance(tensor, Tensor)}


def _run(model: nn.Module, batches: Iterable[Any]) -> int:
    """Recompute the statistics of a model from batches, and count these."""
    count = 0

    def forward() -> None:
        nonlocal count
        for batch in batches:
            count += 1
            if callable(batch) and not isinstance(batch, Tensor):
                batch()
            elif isinstance(batch, Mapping):
                model(**batch)
            else:
                model(batch[0] if isinstance(batch, list | tuple) else batch)

    try:
        with torch.no_grad():
            recompute_batch_norm(model, [forward])
    except (Exception, SystemExit) as fault:  # of the user's code: any
        raise _failed(fault) from fault
    if not count:
        raise SnapshotError(f"{_FLAG}: the function gives no batch")
    return count


def _check_same(tensors: Mapping[str, Tensor], layout: Layout) -> None:
    """SnapshotError if a model has not the tensors of the checkpoints."""
    for name, (shape, _) in layout.items():
        if name not in tensors:
            raise SnapshotError(f"{_FLAG}: the model has no {name}, which the checkpoints have")
        if tuple(tensors[name].shape) != shape:
            raise SnapshotError(f"{_FLAG}: {name} is {list(tensors[name].shape)} in the model, not {list(shape)}")
    if lacking := [name for name in tensors if name not in layout]:
        raise SnapshotError(f"{_FLAG}: the checkpoints have no {lacking[0]}, which the model has")


def _failed(fault: BaseException) -> SnapshotError:
    """A fault of the user's code in one line, with where it is."""
    frames = traceback.extract_tb(fault.__traceback__)
    users = [frame for frame in frames[-1:] if frame.filename != __file__]
    where = f" ({Path(users[0].filename).name}, line {users[0].lineno})" if users else ""
    return SnapshotError(f"{_FLAG}: {fault_of(fault)}{where}")

"""What several ranks that train one model have to do together."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from weight_averaging.words import fault_of

T = TypeVar("T")


def gathered(group: Any, value: Any) -> list[Any]:
    """What each rank of a process group gives. Collective."""
    values = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def together(group: Any, function: Callable[[], T]) -> T:
    """What a function returns here, once it has returned on every rank of a group. Collective, but for a group of None.

    Raises:
        RuntimeError: it raised on another rank, which is named: nobody is left to wait for that one.
    """
    if group is None:
        return function()
    value, error = None, None
    try:
        value = function()
    except Exception as caught:  # whatever it is, the others are told
        error = caught
    told = gathered(group, None if error is None else fault_of(error))
    if error is not None:
        raise error
    for rank, text in enumerate(told):
        if text is not None:
            raise RuntimeError(f"rank {rank} of model_parallel_group raised {text}")
    return value  # type: ignore[return-value]


class Ranks:
    """The ranks that average together: replicas of a process group, or owners of shards, or just this one.

    Args:
        process_group: of replicas, whose weights are bit for bit the same; None: this rank is on its own.
        parts: the process group of ranks that hold different tensors of one model; None: this one holds all.
        tensors: the model's; the device meshes of DTensors among them count (FSDP2).
        modules: the model's; the process groups of those that spread their parameters count (FSDP1).
    Raises:
        ValueError: a process group is given for a model whose parameters are spread over ranks.
    """

    def __init__(self, process_group: Any, parts: Any, tensors: Iterable[Tensor], modules: Iterable[nn.Module]) -> None:
        # In the order of the model: all ranks must come to the groups in one order, and that of a set is no rank's.
        meshes = dict.fromkeys(t.device_mesh for t in tensors if hasattr(t, "device_mesh"))
        flat = [m for m in modules if hasattr(m, "_handle") and hasattr(m, "process_group")]
        groups = dict.fromkeys(m.process_group for m in flat)
        if process_group is not None and (meshes or groups):
            raise ValueError("process_group is for replicas (DDP); under FSDP every rank averages its own shards")
        self.group, self.parts = process_group, parts
        self.is_flat = bool(groups)  # FSDP1: what is on this rank are pieces of a flat vector
        self._sharing = [*groups, *(mesh.get_group(dim) for mesh in meshes for dim in range(mesh.ndim))]
        if process_group is not None:
            self._sharing.append(process_group)
        if parts is not None:  # after those of a part, which must agree among themselves first
            self._sharing.append(parts)

    @property
    def alone(self) -> bool:
        return not self._sharing

    @property
    def is_owner(self) -> bool:
        """Whether this rank holds what only one replica needs to hold."""
        return self.group is None or dist.get_rank(self.group) == 0

    @property
    def is_first(self) -> bool:
        """Whether this is the first of the ranks that share a model or hold it together; true of one on its own."""
        return all(dist.get_rank(group) == 0 for group in self._sharing)

    @property
    def is_first_of_part(self) -> bool:
        """The same among the ranks that share its own tensors or hold them together."""
        return all(dist.get_rank(group) == 0 for group in self._sharing if group is not self.parts)

    def of_parts(self, value: Any) -> list[Any]:
        """What each rank of `parts` gives. Collective."""
        return gathered(self.parts, value)

    def holders(self, by_owner: bool) -> int:
        """How many ranks on this machine hold the same: of replicas those of a group, of shards all (torchrun)."""
        if not self._sharing:
            return 1
        if by_owner and self.group is not None:
            return 1 if self.parts is None else min(dist.get_world_size(self.parts), _ranks_here())
        return _ranks_here()

    @property
    def on_their_own(self) -> int:
        """Ranks on this machine that each may average for themselves."""
        return _ranks_here() if self.alone else 1

    def all_agree(self, yes: bool, device: torch.device) -> bool:
        """Whether `yes` on all ranks. Collective."""
        return bool(self.all_agree_later(torch.tensor(yes, device=device))) if self._sharing else yes

    def all_agree_later(self, yes: Tensor) -> Tensor:
        """The same of a 0-d boolean tensor on the model's device. Collective; no wait where the group needs none."""
        if self._sharing:
            yes = yes.to(torch.int32)
            for group in self._sharing:
                dist.all_reduce(yes, dist.ReduceOp.MIN, group=group)
        return yes.to(torch.bool)

    @contextlib.contextmanager
    def idle_cores(self, others_wait: bool) -> Iterator[None]:
        """Use the cores of the replicas on this machine that wait for this one; torchrun gives each rank one thread."""
        threads = torch.get_num_threads()
        if not others_wait or self.group is None:
            yield
            return
        ours = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        torch.set_num_threads(max(threads, len(ours)))
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    def spread(self, tensors: list[Tensor]) -> None:
        """Overwrite the tensors of all replicas with the owner's. Collective; complete on return."""
        if self.group is None or not tensors or dist.get_world_size(self.group) == 1:
            return
        source = dist.get_global_rank(self.group, 0)
        dense = [t if t.is_contiguous() else t.contiguous() for t in tensors]
        for work in [dist.broadcast(t, source, group=self.group, async_op=True) for t in dense]:
            work.wait()
        for tensor, received in zip(tensors, dense, strict=True):
            if received is not tensor:
                tensor.copy_(received)
        if dense[0].device.type == "cuda":
            torch.cuda.synchronize(dense[0].device)  # of NCCL, wait() orders the streams only


def _ranks_here() -> int:
    """Ranks on this machine, as torchrun tells; 1 where there are none."""
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    return max(1, min(int(os.environ.get("LOCAL_WORLD_SIZE", 1)), dist.get_world_size()))

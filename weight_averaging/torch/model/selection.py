"""Which tensors of a model are averaged, and where they are."""

import logging
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from weight_averaging.include_exclude import Choice, Filter
from weight_averaging.tensor_names import DATA_PARALLEL, WRAPPERS, not_to_average
from weight_averaging.torch.model.wrappers import Stages
from weight_averaging.words import some

logger = logging.getLogger("weight_averaging")

FROZEN, BUFFER, EXCLUDED = "frozen parameters", "buffers", "excluded"


@dataclass(frozen=True)
class Entry:
    """A tensor that is averaged: the one that `module` has under `key` now."""

    name: str
    module: nn.Module
    key: str
    is_buffer: bool

    def tensor(self) -> Tensor | None:
        store = self.module._buffers if self.is_buffer else self.module._parameters
        try:
            return store[self.key]  # of a scripted module it is no dict, and has no get
        except KeyError:
            return None


@dataclass
class Selected:
    """The outcome of a look at a model: the entries, and by reason the names of the floating-point tensors left out."""

    entries: list[Entry] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        text = f"{len(self.entries)} tensors are averaged"
        for reason, names in self.left_out.items():
            text += f"; {len(names)} left as training has them: {reason} ({some(names)})"
        return text


class Selection:
    """The rule. Of all floating-point (and complex) tensors of a model

    - trainable parameters are averaged;
    - running statistics of batch norm are, if `buffers`: buffers `running_mean` and `running_var` of one module;
    - frozen parameters and all other buffers are not, unless `include` chooses them, or they have been before;
    - nor is what `exclude` chooses, nor what `tensor_names.not_to_average` knows unless `include` does.

    Args:
        elsewhere: names of the tensors that other ranks have of the model; None: this one has the whole model.
    Raises:
        TypeError, ValueError: `include` or `exclude` is of a wrong kind, or chooses nothing.
    """

    def __init__(
        self, buffers: bool, include: Choice = None, exclude: Choice = None, elsewhere: Sequence[str] | None = None
    ) -> None:
        self.buffers, self._elsewhere = buffers, elsewhere
        self._include = Filter("include", include)
        self._exclude = Filter("exclude", exclude)

    def check(self, model: nn.Module) -> None:
        """A ValueError if `include` or `exclude` chooses nothing of this model, or both choose the same."""
        tensors = [(entry.name, entry.tensor()) for entry in all_entries(model)]
        names = [*(name for name, _ in tensors), *(self._elsewhere or ())]
        self._include.check(names)
        self._exclude.check(names)
        if both := [name for name, tensor in tensors if self._include(name, tensor) and self._exclude(name, tensor)]:
            raise ValueError(f"{both[0]} is both in include and in exclude")

    def of(self, model: nn.Module, before: Collection[str] = (), same: Collection[int] = ()) -> Selected:
        """The tensors of a model as it is now, each once, in the order of its modules.

        Args:
            before: names of tensors that are averaged already, and stay so if they are frozen now.
            same: ids of such tensors, which may have another name now.
        Raises:
            ValueError: there is nothing to average, on this rank nor on others, or a tensor has no memory yet.
            TypeError: a tensor is of a type or layout that cannot be averaged.
        """
        found = [(entry, tensor) for entry in all_entries(model) if (tensor := entry.tensor()) is not None]
        kinds = not_to_average({entry.name: tensor.dtype in (torch.int8, torch.uint8) for entry, tensor in found})
        selected, seen = Selected(), set()
        for entry, tensor in found:
            if id(tensor) in seen:
                continue  # tied
            seen.add(id(tensor))
            if not (tensor.is_floating_point() or tensor.is_complex()):
                if self._include(entry.name, tensor):
                    raise TypeError(f"include: {entry.name} is {tensor.dtype}; only floating-point can be averaged")
                continue
            reason = self._reason(entry, tensor, kinds)
            if reason in (FROZEN, BUFFER) and (entry.name in before or id(tensor) in same):
                reason = ""
            if reason:
                selected.left_out.setdefault(reason, []).append(entry.name)
            else:
                check_possible(entry.name, tensor)
                selected.entries.append(entry)
        if twice := [name for name, count in Counter(entry.name for entry in selected.entries).items() if count > 1]:
            raise ValueError(
                f"two tensors to average are called {twice[0]}: give the modules of each stage the names of the whole "
                "model's"
            )
        if not selected.entries and self._elsewhere is None:
            left = f" ({selected})" if selected.left_out else ""
            raise ValueError(f"{type(model).__name__} has no trainable floating-point parameter to average{left}")
        return selected

    def _reason(self, entry: Entry, tensor: Tensor, kinds: dict[str, str]) -> str:
        """Why it is left out; empty if it is not."""
        if self._exclude(entry.name, tensor):
            return EXCLUDED
        if self._include(entry.name, tensor):
            return ""
        if entry.name in kinds:
            return kinds[entry.name]
        if entry.is_buffer:
            is_statistic = entry.key in STATISTICS and has_running_statistics(entry.module)
            return "" if is_statistic and self.buffers else BUFFER
        return "" if tensor.requires_grad else FROZEN


STATISTICS = ("running_mean", "running_var")


def has_running_statistics(module: nn.Module) -> bool:
    """Whether a module keeps them as batch norm does: those of torch, and others built like them."""
    buffers = module._buffers
    return all(name in buffers and isinstance(buffers[name], Tensor) for name in STATISTICS)


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Each module once, with the name that it has without wrappers (DDP, FSDP1, torch.compile, checkpointing)."""
    if not isinstance(model, nn.Module):
        hint = "the torch.nn.Module itself, not its parameters" if hasattr(model, "__iter__") else "a torch.nn.Module"
        raise TypeError(f"an averager takes {hint}: got {type(model).__name__}")
    seen: set[int] = set()
    stack: list[tuple[str, nn.Module]] = [("", model)]
    while stack:
        name, module = stack.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield name, module
        for key, child in reversed(module._modules.items()):
            if child is None:
                continue
            parallel = key == DATA_PARALLEL and isinstance(module, DataParallel | DistributedDataParallel)
            if key in WRAPPERS or parallel or isinstance(module, Stages):
                stack.append((name, child))
            else:
                stack.append((f"{name}.{key}" if name else key, child))


def all_entries(model: nn.Module) -> Iterator[Entry]:
    """Every parameter and buffer there is."""
    for name, module in named_modules(model):
        dot = name + "." if name else ""
        for is_buffer, store in ((False, module._parameters), (True, module._buffers)):
            for key, tensor in store.items():
                if tensor is not None:
                    yield Entry(dot + key, module, key, is_buffer)


def check_possible(name: str, tensor: Tensor) -> None:
    """A TypeError or ValueError, in one line, if a tensor cannot be averaged."""
    if is_placeholder(tensor):
        raise ValueError(
            f"{name} is a placeholder of DeepSpeed's ZeRO-3, whose weights no rank has whole: train with ZeRO-1 or -2, "
            "or with FSDP2"
        )
    if is_lazy(tensor):
        raise ValueError(f"{name} is not initialised yet: run the model once before making the averager")
    if tensor.device.type == "meta":
        raise ValueError(f"{name} is on the meta device: give the model memory (to_empty) and weights first")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        raise TypeError(
            f'{name} is a {tensor.layout} tensor, which cannot be averaged: leave it out by exclude="{name}"'
        )
    if is_packed(tensor):
        _check_copies(name, tensor)
        return
    if shares_elements(tensor):
        raise ValueError(
            f"elements of {name} share memory (expand), so that nothing can be written into it: make it "
            f'contiguous(), or leave it out by exclude="{name}"'
        )
    if tensor.dtype not in _POSSIBLE:
        try:
            torch.empty(2, dtype=torch.float32).copy_(torch.empty(2, dtype=tensor.dtype))
        except (RuntimeError, NotImplementedError):
            raise TypeError(
                f'{name} is {tensor.dtype}, which torch cannot convert: leave it out by exclude="{name}"'
            ) from None
        _POSSIBLE.add(tensor.dtype)


def is_placeholder(tensor: Tensor) -> bool:
    """Whether ZeRO-3 has taken a parameter over: between passes it has no elements. By DeepSpeed's own sign."""
    return hasattr(tensor, "ds_id")


def is_packed(tensor: Tensor) -> bool:
    """Whether it is of a class that computes its values from other tensors (torchao's quantised ones), no DTensor."""
    disabled = torch._C._disabled_torch_dispatch_impl
    return type(tensor).__torch_dispatch__ is not disabled and not hasattr(tensor, "device_mesh")


def shares_elements(tensor: Tensor) -> bool:
    """Whether several elements of a tensor may lie at one place in memory."""
    if tensor.is_contiguous() or not tensor.numel() or hasattr(tensor, "device_mesh"):
        return False
    reach = 0  # of the dimensions with smaller strides
    for stride, length in sorted(zip(tensor.stride(), tensor.shape)):
        if length > 1 and stride <= reach:
            return True
        reach += stride * (length - 1)
    return False


def _check_copies(name: str, tensor: Tensor) -> None:
    """A TypeError if torch cannot copy a packed tensor into floats, and floats into one like it."""
    try:
        source = tensor.detach()
        values = [torch.empty(source.numel(), dtype=torch.float32, device=source.device)]
        torch._foreach_copy_(values, [source.reshape(-1)])
        torch._foreach_copy_([torch.empty_like(source).view(-1)], values)
    except Exception as error:  # whatever such a class raises for what it does not have
        logger.debug("%s: %s", name, error)
        raise TypeError(
            f"{name} is a {type(tensor).__name__}, whose values cannot be averaged: freeze it, which leaves it as it "
            f'is, or leave it out by exclude="{name}"'
        ) from None


_POSSIBLE = {
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128, torch.complex32
}  # fmt: skip

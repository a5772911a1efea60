"""Being told of every step of an optimizer, of whichever make, and its learning rate."""

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

from torch.optim import Optimizer


def rate_of(optimizers: Iterable[Any]) -> float | None:
    """The largest learning rate of all groups as it is now, for averages that follow it; None if none has one."""
    groups = [group for optimizer in optimizers for group in getattr(optimizer, "param_groups", ())]
    return max((float(group["lr"]) for group in groups if "lr" in group), default=None)


def watch(optimizer: Any, stepped: Callable[[], None]) -> Callable[[], object]:
    """Call `stepped` after every step that takes place.

    An optimizer that wraps another without `super().__init__()`, or that is none of torch's, calls no hooks: its `step`
    is wrapped instead.

    Returns:
        What ends that.
    Raises:
        TypeError: its `step` cannot be wrapped either.
    """
    if isinstance(optimizer, Optimizer):
        # zero_grad() lets `step` look for hooks from then on, in optimizers that never had any too.
        for hooks in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"):
            vars(optimizer).setdefault(hooks, OrderedDict())
    if getattr(type(optimizer).step, "hooked", False) and isinstance(optimizer, Optimizer):
        handle = optimizer.register_step_post_hook(lambda *_: stepped())
        return handle.remove
    step = optimizer.step

    @functools.wraps(step)
    def told(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        stepped()
        return result

    own = getattr(optimizer, "__dict__", {}).get("step")

    def end() -> None:
        if vars(optimizer).get("step") is not told:
            return  # somebody has wrapped it again: `stepped` is called on, and does no harm
        if own is None:
            del optimizer.step
        else:
            optimizer.step = own

    try:
        optimizer.step = told
    except AttributeError:
        name = type(optimizer).__name__
        raise TypeError(
            f"nobody can be told of the steps of {name}: let it derive from torch.optim.Optimizer and call "
            "super().__init__()"
        ) from None
    return end

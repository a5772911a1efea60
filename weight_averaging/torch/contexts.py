"""In what mode of torch averagers work, whoever calls them."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


def plain_tensors(function: Callable[P, T]) -> Callable[P, T]:
    """Run without gradients, and outside torch.inference_mode: memory made in it could not be changed later."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    return run

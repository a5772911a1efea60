"""An EMA of any length after training, from stored power-function averages (EDM2, arXiv 2312.02696, section 3.2).

Take a power-function average of exponent gamma at step t. It weighs the snapshot of step s <= t by a density (gamma +
1) s^gamma / t^(gamma + 1). The wanted one is fitted by a linear combination of the stored ones, by least squares over
their densities. The residual tells beforehand how far the result is from the real one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from weight_averaging.moved import deprecated


class Profile(NamedTuple):
    """A power-function average: its exponent, and the step it is of."""

    gamma: float
    step: int


def __getattr__(name: str) -> Any:
    """The name that Profile had until 0.2.0."""
    if name != "Track":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    deprecated(f"{__name__}.Track", "Profile")
    return Profile


@dataclass(frozen=True)
class Fit:
    """The coefficients of the stored averages, and the relative error of the profile.

    `error` is ||fit - wanted|| / ||wanted|| of the densities in L2 over training: 0 is exact. It bounds the average's
    own error relative to the snapshots' spread only loosely; with averages of a few steps it is below 0.05 typically.
    """

    coefficients: tuple[float, ...]
    error: float

    def combine(self, states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The wanted average from the stored ones, float32, summed in float64; integers come from the last."""
        result = {}
        for name, last in states[-1].items():
            if not last.is_floating_point():
                result[name] = last.clone()
                continue
            total = torch.zeros(last.shape, dtype=torch.float64)
            for coefficient, state in zip(self.coefficients, states, strict=True):
                total.add_(state[name].double(), alpha=coefficient)
            result[name] = total.float()
        return result


def exponent(relative_length: float) -> float:
    """The gamma whose density has the standard deviation `relative_length` of training: 0.05 -> 16.97, 0.1 -> 6.94.

    sigma^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), decreasing in gamma; solved by bisection.

    Raises:
        ValueError: outside (0, 12^-0.5), 12^-0.5 being that of the uniform mean (gamma = 0).

    >>> round(exponent(0.05), 2), round(exponent(0.1), 2)
    (16.97, 6.94)
    """
    if not 0 < relative_length < 12**-0.5:
        raise ValueError(f"a length must lie in (0, 0.2887), not {relative_length!r}")
    low, high = 0.0, 2.0 / relative_length
    for _ in range(200):
        middle = (low + high) / 2
        sigma = math.sqrt((middle + 1) / ((middle + 2) ** 2 * (middle + 3)))
        low, high = (middle, high) if sigma > relative_length else (low, middle)
    return (low + high) / 2


def fit(stored: Sequence[Profile], wanted: Profile) -> Fit:
    """The combination of `stored` that is nearest to `wanted`.

    Raises:
        ValueError: nothing is stored, a stored one is of a later step than the wanted one, or one is there twice.
    """
    if not stored:
        raise ValueError("a fit needs at least one stored average")
    if len(set(stored)) < len(stored):
        raise ValueError("a stored average is there twice")
    if late := [profile for profile in stored if profile.step > wanted.step]:
        raise ValueError(f"the average of step {late[0].step} is later than the wanted one, of step {wanted.step}")
    # Densities of unit norm: the matrix is then as well conditioned as it can be.
    norms = torch.tensor([math.sqrt(_inner(profile, profile)) for profile in stored], dtype=torch.float64)
    matrix = torch.tensor([[_inner(a, b) for b in stored] for a in stored], dtype=torch.float64)
    target = torch.tensor([_inner(profile, wanted) for profile in stored], dtype=torch.float64)
    scaled, aim = matrix / norms / norms[:, None], target / norms
    solution = torch.linalg.lstsq(scaled, aim[:, None], driver="gelsd").solution[:, 0]
    whole = _inner(wanted, wanted)
    residual = whole - 2 * float(solution @ aim) + float(solution @ scaled @ solution)
    return Fit(tuple((solution / norms).tolist()), math.sqrt(max(residual, 0.0) / whole))


def _inner(a: Profile, b: Profile) -> float:
    """The integral over [0, min(step)] of the product of the two densities (Karras et al., eq. 127)."""
    first, second = (a, b) if a.step <= b.step else (b, a)
    ratio = math.pow(first.step / second.step, second.gamma)
    return (a.gamma + 1) * (b.gamma + 1) * ratio / ((a.gamma + b.gamma + 1) * second.step)

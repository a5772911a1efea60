"""The kinds of averages. Pure Python."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from weight_averaging.averages.average import NUMBERS, Average
from weight_averaging.averages.checks import check_count, check_decay, check_horizon
from weight_averaging.averages.horizon import exponent_from_horizon, warmup_weight


@dataclass(frozen=True, kw_only=True)
class LAWA(Average):
    """The mean of the latest `window` snapshots (Ajroldi et al., ICML 2025, arXiv 2502.06761, Algorithm 1)."""

    window: int
    is_mean: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("window", self.window)

    def _choose(self, due: list[int], at: int) -> list[int]:
        return due[-self.window :] if len(due) >= self.window else []

    def _needs(self) -> str:
        return f"{self.window} snapshots"


@dataclass(frozen=True, kw_only=True)
class EMA(Average):
    """ema <- decay * ema + (1 - decay) * snapshot, from the first snapshot on (as above, Algorithm 2).

    With `warmup` the decay begins small: `collection.warmup_weight`.
    """

    decay: float
    warmup: bool = False
    is_recursive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_decay(self.decay)
        if not isinstance(self.warmup, bool):
            raise ValueError(f"warmup must be True or False, not {self.warmup!r}")

    def _choose(self, due: list[int], at: int) -> list[int]:
        return due

    def weight(self, number: Any, functions: Any = NUMBERS) -> Any:
        return warmup_weight(self.decay, number - 1, functions.maximum) if self.warmup else 1.0 - self.decay


@dataclass(frozen=True, kw_only=True)
class Tail(Average):
    """The plain mean of the snapshots of the last `share` of the updates so far: of steps > (1 - share) * at."""

    share: float
    is_mean: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            check_horizon(self.share)
        except ValueError:
            raise ValueError(f"share must be in (0, 1], not {self.share!r}") from None

    def _choose(self, due: list[int], at: int) -> list[int]:
        return [step for step in due if step > (1.0 - self.share) * at]

    def _needs(self) -> str:
        return f"a snapshot of the last {self.share:g} of the updates"


def _cosine(x: float) -> float:
    return (1.0 + math.cos(math.pi * x)) / 2.0


# Decays of the learning rate, from 1 at x = 0 to 0 at x = 1.
SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda x: 1.0 - x,
    "cosine": _cosine,
    "1-sqrt": lambda x: 1.0 - math.sqrt(x),
}


@dataclass(frozen=True, kw_only=True)
class Merge(Tail):
    """The snapshots of the last `share` of the updates so far, merged so as to stand for a decay of the learning rate.

    Tian et al., "WSM: Decay-Free Learning Rate Schedule via Checkpoint Merging" (arXiv 2507.17634): at a constant
    learning rate, the sum of c_j theta_j over snapshots j = 0, ..., n-1 is theta_0 plus the updates between snapshots
    j-1 and j, weighted by w_j = c_j + ... + c_{n-1}. So c_j = w_j - w_{j+1} with w_j = s(j / n) for a decay s, which is
    1 at j = 0 and 0 at j = n. `linear` is the plain mean, that is, `Tail`.

    Args:
        shape: s, one of `linear`, `cosine` and `1-sqrt`; snapshots count as equally far apart.
        share: as of `Tail`.
    """

    shape: str
    is_mean: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shape not in SHAPES:
            raise ValueError(f"shape must be one of {', '.join(SHAPES)}, not {self.shape!r}")

    def coefficients(self, count: int) -> list[float]:
        decay = [SHAPES[self.shape](j / count) for j in range(count + 1)]
        return [one - after for one, after in itertools.pairwise(decay)]


@dataclass(frozen=True, kw_only=True)
class Weighted(Average):
    """The latest snapshots with given weights, oldest first; there are as many as weights.

    Args:
        weights: finite, none of them 0, with the sum 1; negative ones extrapolate.
    """

    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if bad := [w for w in self.weights if not (isinstance(w, int | float) and math.isfinite(w) and w)]:
            raise ValueError(f"weights must be finite numbers other than 0, not {bad[0]!r}")
        if not abs(math.fsum(self.weights) - 1.0) <= 1e-6:
            raise ValueError(f"weights must have the sum 1, not {math.fsum(self.weights):.6g}")

    def coefficients(self, count: int) -> list[float]:
        return list(self.weights)

    def _choose(self, due: list[int], at: int) -> list[int]:
        return due[-len(self.weights) :] if len(due) >= len(self.weights) else []

    def _needs(self) -> str:
        return f"{len(self.weights)} snapshots"


@dataclass(frozen=True, kw_only=True)
class Power(Average):
    """An EMA whose length grows with training (Karras et al. 2024, "EDM2", arXiv 2312.02696, section 3.1).

    The k-th snapshot enters with decay beta_k = (1 - 1/k)^(gamma + 1), so that a snapshot's weight is about
    proportional to step^gamma. `gamma` = 6.94 and 16.97 are the paper's 10 % and 5 % of training.
    """

    gamma: float
    is_recursive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.gamma, int | float) and math.isfinite(self.gamma) and self.gamma >= 0):
            raise ValueError(f"gamma must be a number >= 0, not {self.gamma!r}")

    def _choose(self, due: list[int], at: int) -> list[int]:
        return due

    def weight(self, number: Any, functions: Any = NUMBERS) -> Any:
        return -functions.expm1((self.gamma + 1.0) * functions.log1p(-1.0 / number))  # 1 - (1 - 1/k)^(gamma + 1)


def exponential(
    decay: float | None, horizon: float | None = None, warmup: bool = False, interval: int | None = None, start: int = 1
) -> EMA | Power:
    """The exponential average of either a decay or a horizon (the share of the updates so far that it covers)."""
    if (decay is None) == (horizon is None):
        raise TypeError(f"EMA takes either a decay or a horizon, not decay={decay!r} and horizon={horizon!r}")
    if horizon is not None:
        if warmup:
            raise TypeError("EMA with a horizon grows from the start: warmup goes with a decay")
        return Power(gamma=exponent_from_horizon(horizon), interval=interval, start=start)
    assert decay is not None
    return EMA(decay=decay, warmup=warmup, interval=interval, start=start)

"""The kinds of averages. Pure Python."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from weight_averaging.averages.average import NUMBERS, Average
from weight_averaging.averages.checks import check_count, check_decay, check_flag, check_share
from weight_averaging.averages.horizon import exponent_from_share, warmup_weight
from weight_averaging.moved import deprecated
from weight_averaging.words import inline


@dataclass(frozen=True, kw_only=True)
class LAWA(Average):
    """The mean of the latest `window` snapshots (Ajroldi et al., ICML 2025, arXiv 2502.06761, Algorithm 1).

    With `allow_partial` there is an average from the first snapshot on, over those held.
    """

    window: int
    allow_partial: bool = False
    is_mean: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("window", check_count("window", self.window))
        check_flag("allow_partial", self.allow_partial)

    @property
    def needed(self) -> int:
        return 1 if self.allow_partial else self.window


@dataclass(frozen=True, kw_only=True)
class EMA(Average):
    """ema <- decay * ema + (1 - decay) * snapshot, from the first snapshot on (as above, Algorithm 2).

    With `warmup` the decay begins small: `horizon.warmup_weight`.
    """

    decay: float
    warmup: bool = False
    is_recursive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("decay", check_decay(self.decay))
        check_flag("warmup", self.warmup)

    @property
    def dead_zone(self) -> float:
        return 2**-25 / (1.0 - self.decay)

    def weight(self, number: Any, functions: Any = NUMBERS) -> Any:
        return warmup_weight(self.decay, number - 1, functions.maximum) if self.warmup else 1.0 - self.decay


@dataclass(frozen=True, kw_only=True)
class Tail(Average):
    """The plain mean of the snapshots of the last `share` of the updates so far: of steps > (1 - share) * at."""

    share: float
    is_mean: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self.share)

    def _choose(self, due: list[int], at: int) -> list[int]:
        return _last_share(self.share, due, at)

    def _needs(self) -> str:
        return f"a snapshot of the last {self.share:g} of the updates"


def _last_share(share: float, due: list[int], at: int) -> list[int]:
    # As the fraction that it stands for: (1.0 - 0.9) * 10 in floats is a little less than 1.
    before = math.floor((1 - Fraction(float(share)).limit_denominator(10**7)) * at)
    return [step for step in due if step > before]


def _cosine(x: float) -> float:
    return (1.0 + math.cos(math.pi * x)) / 2.0


# Decays of the learning rate, from 1 at x = 0 to 0 at x = 1.
SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda x: 1.0 - x,
    "cosine": _cosine,
    "1-sqrt": lambda x: 1.0 - math.sqrt(x),
}


@dataclass(frozen=True, kw_only=True)
class Merge(Average):
    """The latest snapshots, merged so as to stand for a decay of the learning rate over them.

    Tian et al., "WSM: Decay-Free Learning Rate Schedule via Checkpoint Merging" (arXiv 2507.17634). The sum of c_j
    theta_j over snapshots j = 0, ..., n-1 is theta_0 plus weighted updates. Those between snapshots j-1 and j, at a
    constant learning rate, have the weight w_j = c_j + ... + c_{n-1}. So c_j = w_j - w_{j+1}, with w_j = s(j / n). The
    decay s is 1 at j = 0 and 0 at j = n. `linear` is the plain mean, that is, `Tail` or `LAWA`.

    Args:
        shape: s, one of `linear`, `cosine` and `1-sqrt`; snapshots count as equally far apart.
        share: of the updates so far, as of `Tail`: the snapshots of the last `share`.
        window: instead, how many of the latest snapshots: then it can be made along training too.
    Raises:
        ValueError: not just one of `share` and `window`.
    """

    share: float | None = None
    shape: str
    window: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.share is None) == (self.window is None):
            raise ValueError(
                f"a merge takes either a share or a window, not share={self.share} and window={self.window}"
            )
        if self.share is not None:
            check_share(self.share)
        if self.window is not None:
            self._set("window", check_count("window", self.window))
        if self.shape not in SHAPES:
            raise ValueError(f"shape must be one of {', '.join(SHAPES)}, not {inline(self.shape)}")

    def coefficients(self, count: int) -> list[float]:
        decay = [SHAPES[self.shape](j / count) for j in range(count + 1)]
        return [one - after for one, after in itertools.pairwise(decay)]

    def _choose(self, due: list[int], at: int) -> list[int]:
        return super()._choose(due, at) if self.share is None else _last_share(self.share, due, at)

    def _needs(self) -> str:
        return super()._needs() if self.share is None else f"a snapshot of the last {self.share:g} of the updates"


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
            raise ValueError(f"weights must be finite numbers other than 0, not {inline(bad[0])}")
        if not abs(math.fsum(self.weights) - 1.0) <= 1e-6:
            raise ValueError(f"weights must have the sum 1, not {math.fsum(self.weights):.6g}")

    @property
    def held(self) -> int:
        return len(self.weights)

    def coefficients(self, count: int) -> list[float]:
        return list(self.weights)


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
            raise ValueError(f"gamma must be a number >= 0, not {inline(self.gamma)}")

    def weight(self, number: Any, functions: Any = NUMBERS) -> Any:
        return _power_weight(self.gamma, number, functions)


def _power_weight(gamma: float, number: Any, functions: Any) -> Any:
    return -functions.expm1((gamma + 1.0) * functions.log1p(-1.0 / number))  # 1 - (1 - 1/k)^(gamma + 1)


@dataclass(frozen=True, kw_only=True)
class Growing(Average):
    """An average that covers a constant share of the updates so far, however long the run will be.

    It is `Power` with the exponent 2 / share - 2. Its snapshots are as old on average as those of a window over that
    share: t share / 2 at update t. `from_sigma_rel` takes the relative width that EDM2's users know.

    Args:
        share: of the updates so far, in (0, 1]; 1 is the plain mean of all. A seventh was best, or level with the best
            fixed window, while the learning rate was high (docs/growing.md).
    """

    share: float = 0.15
    is_recursive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self.share)

    def weight(self, number: Any, functions: Any = NUMBERS) -> Any:
        return _power_weight(exponent_from_share(self.share), number, functions)

    @classmethod
    def from_sigma_rel(cls, sigma_rel: float, interval: int | None = None, start: int = 1) -> "Growing":
        """The one whose weights have this relative standard deviation (Karras et al. 2024, arXiv 2312.02696).

        sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), and share = 2 / (gamma + 2).

        >>> round(Growing.from_sigma_rel(0.05).share, 4)
        0.1054
        """
        if not 0 < sigma_rel < 12**-0.5:
            raise ValueError(f"sigma_rel must be in (0, {12**-0.5:.4f}), not {inline(sigma_rel)}")
        low, high = 0.0, 1e9
        for _ in range(200):
            gamma = (low + high) / 2
            wide = (gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)) > sigma_rel**2
            low, high = (gamma, high) if wide else (low, gamma)
        return cls(share=2 / (low + 2), interval=interval, start=start)


@dataclass(frozen=True, kw_only=True)
class Ramp(Average):
    """An EMA whose decay goes from `decay` to `final` over `length` snapshots, and stays there.

    The teachers of BYOL (Grill et al. 2020, arXiv 2006.07733) and DINO (Caron et al. 2021, arXiv 2104.14294) move so:
    `cosine` to 1. BYOL has tau = 1 - (1 - tau_base) (cos(pi k / K) + 1) / 2. That of data2vec (Baevski et al. 2022,
    arXiv 2202.03555) moves by `linear`. Snapshot number k + 2 enters with the decay at k, since the first begins.

    Args:
        decay: at first, in [0, 1).
        final: at last, in [0, 1].
        length: snapshots from the one to the other, K: updates divided by the interval.
        shape: `cosine` or `linear`.
    """

    decay: float
    final: float = 1.0
    length: int
    shape: str = "cosine"
    is_recursive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("decay", check_decay(self.decay))
        if not (isinstance(self.final, int | float) and 0 <= self.final <= 1):
            raise ValueError(f"final must be a number in [0, 1], not {inline(self.final)}")
        self._set("length", check_count("length", self.length))
        if self.shape not in ("cosine", "linear"):
            raise ValueError(f"shape must be cosine or linear, not {inline(self.shape)}")

    def weight(self, number: Any, functions: Any = NUMBERS) -> Any:
        passed = functions.minimum(1.0, (number - 2) / self.length)
        left = 1.0 - passed if self.shape == "linear" else (1.0 + functions.cos(math.pi * passed)) / 2.0
        return (1.0 - self.final) + (self.final - self.decay) * left


def exponential(
    decay: float | None,
    share: float | None = None,
    warmup: bool = False,
    interval: int | None = None,
    start: int = 1,
    *,
    horizon: float | None = None,
) -> EMA | Power:
    """The exponential average of a decay, with `warmup` or not, or of a share of the updates so far (once: `horizon`).

    When snapshots are taken, `interval` and `start` say (`Average`). A TypeError if both are given, or neither.
    """
    share = share_of(share, horizon)
    if (decay is None) == (share is None):
        raise TypeError(f"EMA takes either a decay or a share, not decay={decay!r} and share={share!r}")
    if share is not None:
        if warmup:
            raise TypeError("EMA with a share grows from the start: warmup goes with a decay")
        return Power(gamma=exponent_from_share(share), interval=interval, start=start)
    assert decay is not None
    return EMA(decay=decay, warmup=warmup, interval=interval, start=start)


def share_of(share: float | None, horizon: float | None, stacklevel: int = 3) -> float | None:
    """`share`, or what came by the name that it had until 0.2.0, with a warning; `stacklevel` as of `deprecated`."""
    if horizon is None:
        return share
    if share is not None:
        raise TypeError(f"EMA takes one share of the updates so far, not share={share!r} and horizon={horizon!r}")
    deprecated("EMA's horizon=, a share of the updates so far,", "share=", stacklevel)
    return horizon

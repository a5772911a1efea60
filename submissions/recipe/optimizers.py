"""The base optimizers as no framework sees them: what they take, and which parameters they decay."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .hyperparameters import Rule


@dataclass(frozen=True)
class OptimizerSettings:
    """What can be said of a base optimizer without building it.

    Attributes:
        name: as the submissions are called.
        required, optional: its hyperparameters, and what each may be.
        decays: whether weight decay is for a parameter, from the last part of its name and its number of dimensions.
    """

    name: str
    required: Mapping[str, Rule]
    decays: Callable[[str, int], bool]
    optional: Mapping[str, Rule] = field(default_factory=dict)


def everything(name: str, ndim: int) -> bool:
    """As AlgoPerf's NadamW baseline decays."""
    return True


def matrices(name: str, ndim: int) -> bool:
    """All but the scales of norms and the biases, which have one dimension; in flax those of attention have two.

    Not by the workload's parameter types: the official harness guesses those by name, and takes the scale of an
    RMSNorm for a weight in JAX.
    """
    return ndim >= 2 and not name.startswith("bias")


_ADAM: dict[str, Rule] = {
    "learning_rate": (lambda x: x > 0, "> 0"),
    "one_minus_beta1": (lambda x: 0 < x <= 1, "in (0, 1]"),
    "beta2": (lambda x: 0 <= x < 1, "in [0, 1)"),
    "weight_decay": (lambda x: x >= 0, ">= 0"),
}
EPSILON = 1e-8  # where `epsilon` is not given

nadamw = OptimizerSettings("nadamw", _ADAM, everything)
adamw = OptimizerSettings("adamw", _ADAM, matrices, {"epsilon": (lambda x: x > 0, "> 0")})

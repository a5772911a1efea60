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
        averages: whether it brings an average of its own to evaluations; none may be put on top of that.
    """

    name: str
    required: Mapping[str, Rule]
    decays: Callable[[str, int], bool]
    optional: Mapping[str, Rule] = field(default_factory=dict)
    averages: bool = False


def everything(name: str, ndim: int) -> bool:
    """As AlgoPerf's NadamW baseline decays."""
    return True


def matrices(name: str, ndim: int) -> bool:
    """All but the scales of norms and the biases, which have one dimension; in flax those of attention have two.

    Not by the workload's parameter types: the official harness guesses those by name, and takes the scale of an
    RMSNorm for a weight in JAX.
    """
    return ndim >= 2 and not name.startswith("bias")


def hidden_matrices(name: str, ndim: int) -> bool:
    """What Muon is for, by the full name of a parameter: matrices that are no embedding. Output layers are among them.

    Its authors leave these to Adam as well; but neither a shape nor a name tells them in every model.
    """
    return ndim == 2 and "embed" not in name.lower()


_ADAM: dict[str, Rule] = {
    "learning_rate": (lambda x: x > 0, "> 0"),
    "one_minus_beta1": (lambda x: 0 < x <= 1, "in (0, 1]"),
    "beta2": (lambda x: 0 <= x < 1, "in [0, 1)"),
    "weight_decay": (lambda x: x >= 0, ">= 0"),
}
# Of those whose equations cannot do without a first momentum.
_MOMENTUM: dict[str, Rule] = {**_ADAM, "one_minus_beta1": (lambda x: 0 < x < 1, "in (0, 1)")}
_EPSILON: dict[str, Rule] = {"epsilon": (lambda x: x > 0, "> 0")}
EPSILON = 1e-8  # where `epsilon` is not given

nadamw = OptimizerSettings("nadamw", _ADAM, everything)
adamw = OptimizerSettings("adamw", _ADAM, matrices, _EPSILON)
# Pagliardini et al. (arXiv 2409.03137): AdamW with a second, slow momentum.
ademamix = OptimizerSettings(
    "ademamix",
    {**_MOMENTUM, "beta3": (lambda x: 0 < x < 1, "in (0, 1)"), "alpha": (lambda x: x >= 0, ">= 0")},
    everything,
    _EPSILON,
)
# Defazio et al. (arXiv 2405.15682): gradients at a mixture of the iterates and their average, which is evaluated.
schedule_free_adamw = OptimizerSettings("schedule_free_adamw", _MOMENTUM, everything, _EPSILON, averages=True)
_WHOLE: Rule = (lambda x: x >= 1 and x == int(x), "that is whole and >= 1")
# Anil et al. (arXiv 2002.09018) in the implementation of Shi et al. (arXiv 2309.06497), the paper's.
shampoo = OptimizerSettings(
    "shampoo",
    _MOMENTUM,
    everything,
    {
        **_EPSILON,
        "momentum": (lambda x: 0 <= x < 1, "in [0, 1)"),
        "max_preconditioner_dim": _WHOLE,
        "precondition_frequency": _WHOLE,
    },
)
# Vyas et al. (arXiv 2409.11321): Adam in the eigenbasis of Shampoo's preconditioner.
soap = OptimizerSettings(
    "soap",
    _ADAM,
    everything,
    {
        **_EPSILON,
        "precondition_frequency": _WHOLE,
        "max_precondition_dim": _WHOLE,
    },
)
# Jordan et al. (2024, kellerjordan.github.io/posts/muon): the momentum of a matrix, with all its singular values made
# one; NadamW for all else. The update of a matrix is scaled as Liu et al. (arXiv 2502.16982, section 2.2) do, so that
# one learning rate and one weight decay serve both.
muon = OptimizerSettings("muon", _ADAM, everything, {**_EPSILON, "momentum": (lambda x: 0 <= x < 1, "in [0, 1)")})
MOMENTUM = 0.95  # where `momentum` is not given

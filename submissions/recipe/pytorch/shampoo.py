"""Distributed Shampoo (facebookresearch/optimizers) with a state that the harness can save."""

import importlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

# One of the last commits whose Shampoo has a momentum and an override of the inverse root, as in the paper's point, and
# that run with the harness's torch 2.5.1 and Python 3.11. Newer ones want torch 2.8 and Python 3.12.
PACKAGE = "distributed_shampoo"
COMMIT = "9c5700ad5ee81c28dc565c1a49c4b940da28eb8d"
REQUIREMENT = f"torch-shampoo @ git+https://github.com/facebookresearch/optimizers@{COMMIT}"


def arguments(hyperparameters: Any, step_hint: int) -> dict[str, Any]:
    """Those of the published submission, where a hyperparameter does not say otherwise."""
    del step_hint
    given = {"momentum": 0.5, "epsilon": 1e-8, "max_preconditioner_dim": 1024, "precondition_frequency": 100}
    given |= {name: getattr(hyperparameters, name) for name in given if hasattr(hyperparameters, name)}
    whole = {name: int(given[name]) for name in ("max_preconditioner_dim", "precondition_frequency")}
    return {
        **given,
        **whole,
        "start_preconditioning_step": whole["precondition_frequency"],  # the library's default, which it warns of
        "lr": hyperparameters.learning_rate,
        "betas": (1.0 - hyperparameters.one_minus_beta1, float(hyperparameters.beta2)),
    }


def shampoo(groups: list[dict[str, Any]], **given: Any) -> Optimizer:
    """The optimizer, grafted onto Adam, with Nesterov momentum, merged dimensions and inverse square roots.

    Every rank computes all of it. The library could spread it over ranks, but then each would hold a part of the state.
    The harness saves that of the first alone.

    Raises:
        ImportError: what is installed is of another commit.
    """
    library = importlib.import_module(f"{PACKAGE}.{PACKAGE}")  # the other submissions do without
    types = importlib.import_module(f"{PACKAGE}.shampoo_types")
    if not hasattr(types, "AdamGraftingConfig"):  # as it was renamed later
        raise ImportError(f"{PACKAGE} is of another commit: pip install --force-reinstall '{REQUIREMENT}'")

    class Shampoo(library.DistributedShampoo):  # type: ignore[misc, name-defined, unused-ignore]
        """Its own state dict has objects, and wants to be told the parameters' names: they are numbered here."""

        def state_dict(self) -> dict[str, Any]:
            state = self.distributed_state_dict(self._numbered(), save_param_groups=False)
            rates = [
                {name: group[name] for name in ("lr", "initial_lr") if name in group} for group in self.param_groups
            ]
            return {**state, "rates": rates}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            """ValueError, in one line, for a state of other parameters: the library would leave out those without."""
            mine = {number for number, _ in self._numbered()}
            if set(state_dict["state"]) != mine:
                raise ValueError(f"the state is of {len(state_dict['state'])} parameters, the model has {len(mine)}")
            self.load_distributed_state_dict(state_dict, self._numbered(), save_param_groups=False)
            for group, rates in zip(self.param_groups, state_dict["rates"], strict=True):
                group.update(rates)

        def _numbered(self) -> Iterator[tuple[str, Tensor]]:
            parameters = [p for group in self.param_groups for p in group["params"]]
            return ((str(number), parameter) for number, parameter in enumerate(parameters))

    made: Optimizer = Shampoo(
        groups,
        **given,
        inv_root_override=2,
        use_nesterov=True,
        use_merge_dims=True,
        use_decoupled_weight_decay=True,
        grafting_config=types.AdamGraftingConfig(beta2=given["betas"][1], epsilon=1e-8),
    )
    return made

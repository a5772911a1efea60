"""Weight averaging along a training run: LAWA (the mean of the latest snapshots) and EMA (an exponential average).

Three lines in a training loop:

    from weight_averaging import LAWA

    lawa = LAWA.for_run(model, total_updates=len(batches))  # 1: what to average, and how long
    for step, batch in enumerate(batches, start=1):
        train_on(batch)
        optimizer.step()
        lawa.update(step)                                   # 2: after every optimizer update
        if step % 500 == 0:
            with lawa.averaged():                           # 3: evaluate, or save, the averaged model
                evaluate(model)

Training never sees the average. Save and load `lawa.state_dict()` beside the model's and the optimizer's.

The names here are those of `weight_averaging.torch` and need torch; nothing else here does. `weight_averaging.jax` is
the same for JAX, `weight_averaging.offline` averages saved checkpoints, `weight_averaging.trainers` plugs into
Lightning and Hugging Face's Trainer.

The methods are those of Ajroldi, Orvieto and Geiping, "When, Where and Why to Average Weights?", ICML 2025 (arXiv
2502.06761). `suggest` has the recommended settings as a function.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from weight_averaging import moved

if TYPE_CHECKING:
    from weight_averaging.averages.horizon import suggest
    from weight_averaging.torch import EMA, LAWA, Averager, Averages, recompute_batch_norm

moved.install()

__version__ = "0.2.0"
__all__ = ["EMA", "LAWA", "Averager", "Averages", "__version__", "recompute_batch_norm", "suggest"]


def __getattr__(name: str) -> Any:
    """The names of `weight_averaging.torch`, and `suggest`: imported when one is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "suggest":
        return import_module(".averages.horizon", __name__).suggest
    try:
        module = import_module(".torch", __name__)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(
            f"weight_averaging.{name} averages torch modules, and torch is not installed here; for JAX there is "
            "weight_averaging.jax"
        ) from None
    return getattr(module, name)


def __dir__() -> list[str]:
    """The names of `__all__`, for completion and `help`; without torch, those that need none."""
    return sorted(__all__) if find_spec("torch") else ["__version__", "suggest"]

"""EMA: an exponential average of snapshots."""

from typing import Unpack

from weight_averaging.averages import exponential
from weight_averaging.averages.horizon import WINDOW, decay_from_window, for_run
from weight_averaging.averages.kinds import share_of
from weight_averaging.torch.averager import Averager
from weight_averaging.torch.options import Model, Options, check_names, shows_options


class EMA(Averager):
    """Exponential average of the weights (Algorithm 2 of Ajroldi et al., ICML 2025, arXiv 2502.06761).

    Starts at the first snapshot, so that nothing of the random initialisation is in it, then after every `interval`
    updates

        ema <- decay * ema + (1 - decay) * theta_t,

    so that no correction for the start ("debiasing") is needed. Early on a decay near 1 is still nearly that first
    snapshot; with `warmup` or `share` the average grows with training.

    Memory: 4 bytes per parameter, and one copy of the model for the raw weights. On an accelerator the latter is held
    during evaluations only. With the average in host memory (8 bytes per parameter there) it is always held, since
    snapshots travel from it.

    Args:
        decay: weight of the past, in [0, 1). `weight_averaging.averages.horizon.decay_from_window` gives the decay that
            matches a LAWA window.
        share: instead of a decay, the share of the updates so far that the average covers, in (0, 1]. It is the
            power-function average of Karras et al. (EDM2, arXiv 2312.02696, section 3.1) with exponent 2 / share - 2.
            That is as old on average as a window over that share. 0.105 is EDM2's relative length of 0.05.
        horizon: the name that `share` had until 0.2.0. Elsewhere a horizon is a share of the whole run.
        warmup: let the (k+1)-th snapshot enter with decay min(decay, (1 + k) / (10 + k)).
        interval: updates between snapshots, nu >= 1.
        start: the first update whose weights may be collected; 0: the initial weights, by `update(0)` before training.
        model, placement, buffers, include, exclude, check_finite, dtype, masters: see `Averager`.
        process_group, model_parallel_group: see `Averager`.
            Replicas of a group hold an EMA each, except in host memory.
    Raises:
        TypeError: not just one of `decay` and `share`.
        MemoryError: it would not fit in host memory.

    >>> import torch
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> ema = EMA(model, decay=0.5)
    >>> for step in (1, 2, 3):
    ...     _ = model.weight.data.fill_(float(step))
    ...     _ = ema.update(step)
    >>> with ema.averaged():
    ...     print(model.weight.item())
    2.25
    """

    @shows_options
    def __init__(
        self,
        model: Model,
        *,
        decay: float | None = None,
        share: float | None = None,
        horizon: float | None = None,
        warmup: bool = False,
        interval: int = 1,
        start: int = 1,
        **options: Unpack[Options],
    ) -> None:
        share = share_of(share, horizon, stacklevel=4)  # beyond `shows_options`
        if decay is None and share is None:
            raise TypeError(
                "EMA needs a decay=: EMA.for_run(model, total_updates=...) chooses one, EMA.growing(model) needs none"
            )
        self.decay, self.share, self.warmup = decay, share, warmup
        super().__init__(model, exponential(decay, share, warmup, interval, start), **options)

    @property
    def horizon(self) -> float | None:
        """`share`, by the name that it has in saved states."""
        return self.share

    @classmethod
    @shows_options
    def for_run(
        cls,
        model: Model,
        total_updates: int,
        *,
        horizon: float | None = None,
        window: int = WINDOW,
        warmup: bool = False,
        start: int = 1,
        **options: Unpack[Options],
    ) -> "EMA":
        """The EMA as old on average as `LAWA.for_run` of the same `total_updates`, `horizon` and `window`."""
        check_names(options, cls.for_run)
        interval, length = for_run(total_updates, horizon, window)
        decay = decay_from_window(length)
        made = cls(model, interval=interval, decay=decay, warmup=warmup, start=start, **options)
        made._total = total_updates
        return made

    @classmethod
    @shows_options
    def growing(
        cls, model: Model, share: float = 0.15, *, interval: int = 1, start: int = 1, **options: Unpack[Options]
    ) -> "EMA":
        """The EMA that covers a constant share of the updates so far (`averages.Growing`, docs/growing.md).

        It needs no length of the run, and nothing changes when a run is extended.

        Args:
            share: in (0, 1].

        >>> import torch
        >>> ema = EMA.growing(torch.nn.Linear(1, 1))
        >>> ema.share
        0.15
        """
        check_names(options, cls.growing)
        return cls(model, share=share, interval=interval, start=start, **options)

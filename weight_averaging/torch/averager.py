"""Averages of a model in training: swapped in and out, handed out, saved and loaded."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Unpack

from weight_averaging import averages
from weight_averaging.averages import Average
from weight_averaging.averages.checks import check_step
from weight_averaging.averages.follows_rate import checked_rate
from weight_averaging.elsewhere import AnswersHabits
from weight_averaging.torch import saved_state
from weight_averaging.torch.model.tensors import locked
from weight_averaging.torch.options import Model, Options, completed, shows_options
from weight_averaging.torch.shown import Shown
from weight_averaging.torch.state import State

# What saved states have of the settings.
SETTINGS = {"LAWA": ("window", "allow_partial", "interval"), "EMA": ("decay", "horizon", "warmup", "interval")}
_INTO, _APART = "`with averager.averaged():` has the average in the model", "average_state_dict() is the average"
ELSEWHERE = {  # methods and attributes of other libraries
    **dict.fromkeys(("store", "restore", "apply_shadow", "average_parameters", "ema_scope", "apply_to"), _INTO),
    **dict.fromkeys(("module", "ema_model", "shadow", "shadow_params", "averaged_model", "ema"), _APART),
    **dict.fromkeys(("update_parameters", "update_model"), "update(step) follows an optimizer update"),
}


class Averager(AnswersHabits, Shown):
    """An average of a model's weights along training, kept in float32 (or float64) and apart from the model.

    The model trains on its raw weights. `swap_in` puts the average into it for evaluation and keeps the raw weights
    aside. `swap_out` puts those back, bit for bit. Use `averaged()` for both.

    Averaged are the trainable parameters and batch-norm statistics (`torch.model.selection`). A model that changes is
    followed: what is new counts in the snapshots held with its first value, and a warning names it (docs/models.md).

    Of parameters that are spread over ranks (FSDP) every rank averages its own shards, with nothing gathered; `update`
    is then collective where `check_finite` is on.

    Args:
        model: the module in training, also wrapped by DDP, FSDP or torch.compile; or several, stages of a pipeline.
        average: what to average, a description from `weight_averaging.averages` or one of your own
            (docs/own_average.md), with an interval. `LAWA` and `EMA` make theirs from their arguments. Of several, as
            in `Averages`, `select` says which one is shown.
        placement: where snapshots and averages live. `"device"` is where the model is. `"host"` is host memory, into
            which snapshots are copied while training continues (of replicas, that of the first rank). `"auto"` is the
            device for exponential averages, and for windows if they take no more than a tenth of its free memory.
        buffers: `"average"` treats batch-norm statistics like parameters, `"latest"` leaves them as training has them.
            `"recompute"` asks for new ones at every swap, by the function given to `swap_in`. Other buffers stay as
            they are.
        include, exclude: names or patterns of tensors or modules, or a function of name and tensor. `include` are
            frozen parameters and other floating-point buffers to average as well. `exclude` are parameters and
            statistics to leave as training has them. Names are those without wrappers.
        check_finite: refuse weights with a NaN or an infinity, for one more read of the weights at each snapshot. Turn
            it off where that read matters (an interval of 1) and training stops at the first NaN anyway. An accelerator
            is not waited for. What it finds is read before the next snapshot or any use of the average, and a bad one
            is dropped then.
        process_group: replicas (DDP) that average together. They agree on which snapshots are collected, and one of
            them holds what one is enough for. `update` and `swap_in` are collective. None: each is on its own.
        model_parallel_group: ranks with other tensors of the same model (pipeline stages, experts). They agree on which
            snapshots are collected, and have one whole average and one state, both collective (docs/models.md).
        dtype: of snapshots and averages, torch.float32 or torch.float64, which takes twice the memory. None: float64
            if any averaged tensor is float64, else float32. A float32 EMA with a decay of .9999 stands still where the
            weights differ from it by less than 3e-4 of their size (`2^-25 / (1 - decay)`). One in float64 does not.
        masters: of a model of fewer than 32 bits, whose float32 masters are averaged instead of its roundings. Give the
            optimizer that keeps them, a mapping from parameters to them, or a function of a parameter. The function
            returns its master or None. The average is rounded to the model's type when it is swapped in; masters are
            only read, except by `adopt`. Parameters of 32 bits or more may have none (docs/models.md).
    Raises:
        TypeError, ValueError: a model or an argument that cannot be taken, in one line.
        MemoryError: what is to be held would not fit, before any snapshot is taken.

    Attributes:
        averages: the descriptions of what is averaged.
        buffers: as it was given.
        step: the last update seen.

    >>> import torch
    >>> from weight_averaging.averages import Merge
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> averager = Averager(model, Merge(shape="1-sqrt", window=4, interval=1))
    >>> for step in (1, 2, 3, 4):
    ...     _ = model.weight.data.fill_(float(step))
    ...     _ = averager.update(step)
    >>> with averager.averaged():
    ...     print(round(model.weight.item(), 3))
    1.927
    """

    _elsewhere, _called = ELSEWHERE, f"it is no model: {_INTO}, {_APART}"

    @shows_options
    def __init__(self, model: Model, average: Average | Iterable[Average], **options: Unpack[Options]) -> None:
        given = completed(options, type(self).__init__)
        super().__init__(model, average if isinstance(average, Iterable) else [average], given)
        self._follows_rate = any(isinstance(average, averages.FollowsRate) for average in self.averages)

    @property
    def name(self) -> str:
        """Of messages and saved states: LAWA or EMA also where these were described; else the class."""
        one = type(self.averages[0]) if type(self) is Averager and len(self.averages) == 1 else None
        return "LAWA" if one is averages.LAWA else "EMA" if one is averages.EMA else super().name

    def select(self, average: Average) -> None:
        """Let `ready`, `swap_in` and `averaged` be about this average; at first it is the first one.

        Raises:
            KeyError: it is not tracked.
            RuntimeError: another one is in the model.
        """
        if average not in self._track_of:
            raise KeyError(f"{average} is not among the averages: {', '.join(map(str, self.averages))}")
        if self._swap.is_in and average != self._selected:
            raise RuntimeError(f"select({average}) while {self._selected} is in the model: call swap_out() first")
        self._selected = average
        self._said.discard("not ready")

    @property
    def state(self) -> State:
        """What is held now. Read only."""
        return State.of(self)

    def __repr__(self) -> str:
        given = self.settings()
        given = {"share" if name == "horizon" else name: value for name, value in given.items()}  # as it is given
        settings = ", ".join(f"{n}={v!r}" for n, v in given.items() if v not in (None, False) and n != "buffers")
        now = "in the model" if self.swapped else "ready" if self.ready else "not ready"
        return f"{self.name}({settings}; {self.state}; {now})"

    def settings(self) -> dict[str, Any]:
        """What must agree between a saved state and this averager, by name.

        The same average has the same state, whether described or made by LAWA or EMA, and that of release 0.2.0.
        """
        source = self.averages[0] if type(self) is Averager else self
        own = {name: getattr(source, name, None) for name in SETTINGS.get(self.name, ())}
        own = own or {"averages": [str(average) for average in self.averages]}
        return {**own, "start": self.start, "buffers": self.buffers}

    @property
    def swapped(self) -> bool:
        """Whether the model holds the average now."""
        return self._swap.is_in

    def update(self, step: int, learning_rate: Any = None) -> bool:
        """Tell that `step` optimizer updates are complete; collects a snapshot when one is due.

        With start=0 the first call is `update(0)`, before training: the initial weights are the first snapshot.

        Weights with a NaN or an infinity are not collected (`check_finite`): a warning names the first such step and
        the average stays as it is.

        Args:
            learning_rate: of this update, >= 0: `optimizer.param_groups[0]["lr"]` before the scheduler's step. Needed
                by `averages.FollowsRate`, unused by all others.
        Returns:
            Whether a snapshot was collected; on an accelerator, where one was due, before it is known to be finite.
        Raises:
            RuntimeError: the average, or that of another averager, is in the model, so that its weights are not those
                of training.
            TypeError, ValueError: `step` is not a whole number, or not larger than at the last call; the learning rate
                is missing, or none.
        """
        if self._swap.is_in:
            raise RuntimeError(f"update({step}) while the average is in the model: call swap_out() before training on")
        waits = not self.step and self._waits_for_initial
        step = check_step(step, -1 if waits else self.step)
        if waits and step:
            raise ValueError(
                f"update({step}) of an average that begins at the initial weights (start=0): call update(0) before "
                "training"
            )
        self._learning_rate = checked_rate(learning_rate, self.averages) if self._follows_rate else None
        self._initial = self._initial or waits
        self._swap.train_on(step)
        return self._pass(step)

    @locked
    def swap_in(self, recompute: Callable[[], object] | None = None) -> bool:
        """Put the average into the model. Does nothing if it is there already, or if none is ready.

        Args:
            recompute: called with the average in the model, to bring batch-norm statistics up to date, for instance by
                `weight_averaging.torch.recompute_batch_norm`. Needed under `buffers="recompute"`, unused otherwise.
                Random numbers that it draws are not missed by training.
        Returns:
            Whether the model holds the average now.
        Raises:
            TypeError: `buffers="recompute"` without `recompute`.
            RuntimeError: the average of another averager is in the model.
        """
        if self.buffers == "recompute" and recompute is None:
            raise TypeError('buffers="recompute" needs a function to do it: swap_in(recompute=...)')
        if self._swap.is_in:
            return True
        self._swap.refuse_another("swap_in")
        if not self._prepare():
            return False
        self._swap.bring_in(self._write, recompute if self.buffers == "recompute" else None)
        return True

    @locked
    def swap_out(self) -> bool:
        """Put the raw weights back into the model. Does nothing if they are there.

        Returns:
            Whether anything was swapped.
        Raises:
            RuntimeError: tensors of the model were removed or reshaped meanwhile.
        """
        if not self._swap.is_in:
            return False
        self._swap.take_out()
        return True

    @locked
    def adopt(self, recompute: Callable[[], object] | None = None) -> None:
        """Let training go on from the average: the raw weights are given up. What is held stays.

        The optimizer is not touched, except for `masters`, which become the average too. Its moments, which were of the
        raw weights, go on. An optimizer with weights of its own (float32 copies not given as `masters`, Lookahead,
        schedule-free) would bring the raw ones back: make it anew.

        Args:
            recompute: as of `swap_in`.
        Raises:
            RuntimeError: there is no average yet, that of another averager is in the model, or `masters` is a function
                that computes them at each call. Nothing has changed then.
            TypeError: `buffers="recompute"` without `recompute`.
        """
        was_in = self._swap.is_in
        if not self.swap_in(recompute):
            raise RuntimeError(f"there is no average to adopt yet: {self!r}")
        try:
            self._weights.write_masters(self._write)
        except RuntimeError:
            if not was_in:
                self.swap_out()
            raise
        self._swap.stay()

    @contextlib.contextmanager
    def averaged(self, recompute: Callable[[], object] | None = None) -> Iterator[bool]:
        """The average in the model for the length of a `with` block, which receives whether there was one to use.

        What is taken out of the model in the block and shares its memory (`model.state_dict()`) has the raw weights
        after it. Save it inside, or use `average_state_dict()`. Of blocks that overlap, the last to end takes it out.
        """
        with self._swap.block(lambda: self.swap_in(recompute), self.swap_out) as ready:
            yield ready

    @locked
    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and strings: loads under `torch.load(weights_only=True)`.

        The tensors are not copied: save them, or take a `copy.deepcopy`, before training goes on. Taken while swapped,
        the state also holds the raw weights, since a model saved at that moment does not.

        Of a model with DTensors the state holds DTensors, and is of one size whether or not a window is full. So
        torch.distributed.checkpoint saves it from any number of ranks and loads it into the state of another.

        Raises:
            RuntimeError: the average is swapped in, and the model has DTensors.
        """
        return saved_state.state_of(self, self._swap, self.settings())

    @locked
    def load_state_dict(self, saved: dict[str, Any], *, settings: str = "same") -> None:
        """Take over a saved state, wherever `map_location` put its tensors. An average in the model is taken out first.

        If the state was saved while swapped, the raw weights go back into the model, which is then ready for training.
        The model's own checkpoint may be loaded before or after: if it has the average of that moment, the raw weights
        are put back again. Tensors that the state lacks count in its snapshots as they are now.

        Args:
            settings: `"same"` refuses a state of other settings. `"new"` goes on from it with those of this averager.
                Of a window the snapshots are kept that it would hold itself (consecutive multiples of its interval). An
                EMA goes on with its new decay; one that grows counts the updates taken in, in its new interval. Tensors
                that are not averaged here are dropped. Log lines say which.
        Raises:
            ValueError: it is the state of another averager, other settings or another model, or it was not copied and
                training has gone on since. Nothing has changed then.
        """
        saved_state.load(self, self._swap, self.settings(), saved, settings)

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy.deepcopy, together with the model: all that training on needs, unshared."""
        if self._ranks.group is not None or self._ranks.parts is not None:
            raise TypeError("an averager with a process_group cannot be pickled or deep-copied: use its state_dict()")
        self._settle()
        return {**self.__dict__, "_lock": None}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self.__dict__.update(saved, _lock=threading.RLock())

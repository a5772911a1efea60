"""Saved states of averagers: what fits what, and vectors of shards as DTensors."""

import logging
from typing import Any

import torch
from torch import Tensor

from weight_averaging.averages.schedule import still_held
from weight_averaging.torch.collector import Collector
from weight_averaging.torch.load_guard import checksums
from weight_averaging.torch.model.batch_norm import restore_statistics
from weight_averaging.torch.model.look import Look
from weight_averaging.torch.model.ranks import together
from weight_averaging.torch.model.selection import all_entries
from weight_averaging.torch.model.tensors import is_of_this_rank, local, spread_like
from weight_averaging.torch.model.weights import LiveWeights
from weight_averaging.torch.parts import state_of_all, state_of_one
from weight_averaging.torch.swap import Swap
from weight_averaging.torch.tracks.track import Track
from weight_averaging.torch.tracks.window import WindowTrack
from weight_averaging.words import inline, some, with_article

logger = logging.getLogger("weight_averaging")

Order = list[int | None]  # for each tensor that is averaged here its place in a state; None: it is not there

_CONTENTS = ("averager", "step", "names", "shapes", "dtypes", "tracks", "raw", "raw_statistics", "checksums")


def state_of(averager: Collector, swap: Swap, settings: dict[str, Any]) -> dict[str, Any]:
    """See `Averager.state_dict`."""
    averager._settle()
    weights = averager._weights
    by_name = weights.is_sharded or averager._ranks.parts is not None
    if swap.is_in and by_name:
        raise RuntimeError("the state of a model over several ranks cannot be saved while swapped: call swap_out()")
    state = {
        "averager": averager.name,
        **settings,
        "step": averager.step,
        "names": list(weights.names),
        "shapes": [list(shape) for shape in weights.shapes],
        "dtypes": [str(dtype).removeprefix("torch.") for dtype in weights.dtypes],
        "tracks": [_track_state(weights, track, by_name) for track in averager._tracks],
        "raw": list(swap.raw) if swap.is_in else None,
        "raw_statistics": dict(swap.statistics),
        "checksums": checksums(weights.tensors()) if swap.is_in else [],
    }
    return state if averager._ranks.parts is None else state_of_all(state, weights, averager._ranks)


def load(averager: Collector, swap: Swap, settings: dict[str, Any], state: dict[str, Any], how: str) -> None:
    """See `Averager.load_state_dict`, whose `settings` is `how` here. All checks come first, then all changes."""
    parts, saved = averager._ranks.parts, state
    differing = together(parts, lambda: _differing(averager, settings, saved, how))
    state, look, order, pairs, restored = together(parts, lambda: _checked(averager, swap, saved, how))
    if swap.is_in:
        swap.take_out()
    averager._look()
    averager._notice(lambda: averager._weights.adopt(set(look.names)))
    for (vectors, steps, count), (source, track) in zip(restored, pairs, strict=True):
        track.set_vectors(vectors, steps, count)
        track.set_further(source or {})
    averager.step, averager._refused = int(state["step"]), 0
    if any(steps for _, steps, _ in restored):
        _say_rest(averager.name, look, state, order)
    if differing:
        changed = ", ".join(f"{key} {state[key]!r} -> {settings[key]!r}" for key in differing)
        kept = ", ".join(
            f"{len(steps)} of {len(source['snapshot_steps'])}" if source else "none, as the state has no such average"
            for (_, steps, _), (source, _) in zip(restored, pairs)
        )
        name = averager.name
        logger.warning("the saved %s goes on with other settings (%s); snapshots kept: %s", name, changed, kept)
    swap.guard.end()
    raw = state["raw"]
    if raw is not None:
        places = [index for index in order if index is not None]  # all: `_fits` sees to that
        mine = [raw[index] for index in places]
        with averager._weights.change():
            averager._spare.restore(mine)
        restore_statistics(averager._model, state["raw_statistics"])
        sums = [state["checksums"][index] for index in places]
        swap.guard.begin(averager._weights, averager._model, mine, sums, state["raw_statistics"])


def _checked(averager: Collector, swap: Swap, state: dict[str, Any], how: str) -> tuple[Any, ...]:
    """This rank's part of a state, where its tensors go, and what of it each track takes over."""
    if averager._ranks.parts is not None:
        state = state_of_one(state, averager._weights, averager._ranks)
    swap.refuse_another("load_state_dict")
    averager._settle()
    if swap.is_in:
        _refuse_stale_raw(averager, swap, state)
    look, order = _fits(averager, state, drop=how == "new")
    sources = state["tracks"] if how == "same" else [_source(state["tracks"], track) for track in averager._tracks]
    pairs = list(zip(sources, averager._tracks, strict=True))
    # On all ranks, also those that hold no vectors: masters may have to be gathered.
    live = averager._weights.sources(required=False, look=look) if None in order else look.found
    return state, look, order, pairs, [_restored(averager, look, live, state, *pair, order) for pair in pairs]


def _differing(averager: Collector, settings: dict[str, Any], state: dict[str, Any], how: str) -> list[str]:
    """The settings in which a state differs; a ValueError if that, or anything else of it, forbids loading it."""
    if how not in ("same", "new"):
        raise ValueError(f"settings must be 'same' or 'new', not {inline(how)}")
    name = averager.name
    if missing := [key for key in _CONTENTS if key not in state]:
        raise ValueError(f"not the state of an averager: it has no {', '.join(missing)}")
    if state["averager"] != name:
        raise ValueError(
            f"this is the state of {with_article(state['averager'])}, and the averager is {with_article(name)}"
        )
    differing = [key for key, mine in settings.items() if state[key] != mine]
    if differing and how == "same":
        key = differing[0]
        raise ValueError(
            f"the saved {name} has {key}={state[key]!r}, this {name} {settings[key]!r}: to go on with the new settings "
            'on purpose, give settings="new" to load_state_dict, or to the WeightAveraging of a trainer'
        )
    return differing


def _track_state(weights: LiveWeights, track: Track, by_name: bool) -> dict[str, Any]:
    """The state of a track, oldest vector first; of a model that is spread over ranks also the memory not used yet."""
    size = track.window if isinstance(track, WindowTrack) else 1
    vectors = track.slots()[:size] if by_name else track.vectors()
    return {
        "interval": track.interval,
        "start": track.start,
        "window": track.window if isinstance(track, WindowTrack) else None,
        "average": track.description,
        "snapshot_steps": list(track.steps),
        "count": track.count,
        **track.further(),
        "vectors": [_by_name(weights, vector) for vector in vectors] if by_name else vectors,
    }


def _source(saved: list[dict[str, Any]], track: Track) -> dict[str, Any] | None:
    """The saved track that one of other settings goes on from: the window that has most for it, or the like average."""
    if isinstance(track, WindowTrack):
        windows = [source for source in saved if source["window"] is not None]
        return max(windows, key=lambda source: len(_kept(source, track)), default=None)
    others = [source for source in saved if source["window"] is None]
    if len(saved) == len(others) == 1:
        return others[0]
    if same := [source for source in others if source["average"] == track.description]:
        return same[0]
    alike = [
        source for source in others if _without_interval(source["average"]) == _without_interval(track.description)
    ]
    return alike[0] if len(alike) == 1 else None


def _without_interval(description: str) -> list[str]:
    """The words of an average that say how its snapshots are weighted, and not which they are."""
    return [word for word in description.split() if not word.startswith(("interval=", "start="))]


def _kept(saved: dict[str, Any], track: Track) -> list[int]:
    """Which of a saved track's snapshots this one takes."""
    steps = list(saved["snapshot_steps"])
    if not isinstance(track, WindowTrack):
        return steps
    settings = (track.interval, track.start, track.window)
    if (saved["interval"], saved["start"], saved["window"]) == settings:
        return steps
    return still_held(steps, track.interval, track.window, track.start)


def _restored(
    averager: Collector,
    look: Look,
    live: list[Tensor],
    state: dict[str, Any],
    saved: dict[str, Any] | None,
    track: Track,
    order: Order,
) -> tuple[list[Tensor], list[int], int]:
    """The vectors, steps and count of a saved track, in the order of this model's tensors.

    Args:
        look, order: from `_fits`.
        live: of what the state lacks the values as they are now.
        state: the whole state that `saved` is part of.
    Raises:
        ValueError: vectors are missing, not as long as their shapes say, or overwritten since.
    """
    if saved is None:
        return [], [], 0
    steps, kept, taken = list(saved["snapshot_steps"]), _kept(saved, track), int(saved["count"])
    # What grows with training grows with the updates, of which a snapshot stands for an interval.
    is_new = saved["interval"] != track.interval and not isinstance(track, WindowTrack)
    count = max(1, round(taken * saved["interval"] / track.interval)) if is_new and taken else taken
    if track.by_owner and not averager._ranks.is_owner:
        return [], kept, count
    vectors = saved["vectors"][: len(steps)]
    if len(vectors) < len(steps):
        raise ValueError("the state was saved by a rank that holds no snapshots: load that of the group's first rank")
    for step, vector in zip(steps, vectors):
        if isinstance(vector, Tensor) and track.is_stale(vector, step, taken):
            raise _stale()
    by_step = dict(zip(steps, vectors))
    return [_flat(look, live, by_step[step], state, order) for step in kept], kept, count


def _refuse_stale_raw(averager: Collector, swap: Swap, state: dict[str, Any]) -> None:
    own = {tensor.data_ptr() for tensor in swap.raw if tensor.numel()}
    if state["step"] != averager.step and any(tensor.data_ptr() in own for tensor in state["raw"] or ()):
        raise _stale()


def _stale() -> ValueError:
    return ValueError(
        "the state was not copied, and training has gone on since: what it held is overwritten; "
        "keep copy.deepcopy(averager.state_dict()), or a file"
    )


def _fits(averager: Collector, state: dict[str, Any], drop: bool) -> tuple[Look, Order]:
    """The tensors that are averaged here with this state, and for each its place in it; a ValueError without a match.

    Frozen parameters and buffers that the state has are averaged here as well: they have been in the saved run. What it
    lacks was frozen or not there in that run, and is new.

    Args:
        drop: whether the state may have tensors that are not averaged here, or that have another shape. Buffers are
            then averaged as the settings here say.
    """
    where = {name: index for index, name in enumerate(state["names"])}
    shapes = {name: tuple(shape) for name, shape in zip(state["names"], state["shapes"], strict=True)}
    buffers = {entry.name for entry in all_entries(averager._model) if entry.is_buffer} if drop else set()
    look = averager._weights.preview(set(where) - buffers)
    lacking = [name for name in look.names if name not in where]
    extra = sorted(set(where) - set(look.names))
    order: Order = [where.get(name) for name in look.names]
    resized = [n for n, shape in zip(look.names, look.shapes, strict=True) if shapes.get(n, shape) != shape]
    alone = averager._ranks.parts is None  # else other ranks may have what fits
    if (extra and not drop) or (alone and len(lacking) == len(order)):
        hint = '; settings="new" takes what fits' if len(lacking) < len(order) else ""
        raise ValueError(
            f"the saved state is of another model: {len(lacking)} of {len(look.names)} tensors are not in it "
            f"({some(lacking)}), {len(extra)} of its own are not in this model ({some(extra)}){hint}"
        )
    if resized and (not drop or (alone and len(lacking) + len(resized) == len(order))):
        name = resized[0]
        raise ValueError(
            f"the saved {name} has shape {shapes[name]}, this model's {look.shapes[look.names.index(name)]}"
        )
    if state["raw"] is not None and (other := [*extra, *lacking, *resized]):
        why = "is not in it as it is here" if other[0] in look.names else "is not averaged here"
        raise ValueError(
            f"the state was saved while the average was in the model, and {other[0]} {why}, so its raw values would be "
            "lost: load it with the model and the settings it was saved with first, and swap_out()"
        )
    return look, [None if name in resized else index for name, index in zip(look.names, order, strict=True)]


def _say_rest(kind: str, look: Look, state: dict[str, Any], order: Order) -> None:
    """What a state has not got, and what of it is not taken."""
    new = [name for name, index in zip(look.names, order, strict=True) if index is None]
    dropped = sorted(set(state["names"]) - set(look.names))
    if new:
        text = "the saved %s has no %s (%d tensors): in the snapshots held they count as they are now"
        logger.warning(text, kind, some(new), len(new))
    if dropped:
        logger.warning("%s (%d tensors) of the saved %s are dropped", some(dropped), len(dropped), kind)


def _flat(look: Look, live: list[Tensor], vector: Any, state: dict[str, Any], order: Order) -> Tensor:
    if not look.names:  # of a rank that has none of the model's tensors
        return torch.empty(0)
    if isinstance(vector, dict):  # by name, as of a model with DTensors
        places = zip(look.names, live, order, strict=True)
        shards = [tensor if index is None else local(vector[name]) for name, tensor, index in places]
        if [tuple(t.shape) for t in shards] != look.local_shapes or not all(map(is_of_this_rank, vector.values())):
            raise ValueError(
                "the saved DTensors are another rank's, or not spread as this model's: save and load them by "
                "torch.distributed.checkpoint, or in one file through weight_averaging.trainers.shards.InOneFile"
            )
        dtype = next((t.dtype for t in vector.values()), torch.float32)  # what is new here may be of another
        return torch.cat([t.reshape(-1).to(dtype) for t in shards])
    numels = [torch.Size(shape).numel() for shape in state["shapes"]]
    if vector.numel() != sum(numels):
        raise ValueError(f"a saved vector has {vector.numel()} elements, its shapes {sum(numels)}")
    if look.is_sharded:
        raise ValueError("the saved state is of a model without DTensors, this model has them")
    if order == list(range(len(numels))):
        assert isinstance(vector, Tensor)
        return vector
    pieces = vector.split(numels)
    return torch.cat([t.reshape(-1).to(vector) if i is None else pieces[i] for i, t in zip(order, live, strict=True)])


def _by_name(weights: LiveWeights, vector: Tensor) -> dict[str, Tensor]:
    """A local vector as tensors that are spread over the ranks as the model's are; views."""
    views = zip(weights.names, weights.views(vector), weights.global_tensors(), strict=True)
    return {name: spread_like(view, like) for name, view, like in views}

"""The place of checkpoints in their run: completed updates, or epochs where nobody wrote down updates.

One rule. Numbers come from the first of these places that all checkpoints have, and that are not the same in all:

1. updates: its own counter (`global_step`, `iteration`, ...), else the number after step, iter or update in its name.
   Where each is in a folder of its own, it may be in the folder's name;
2. the number after epoch in its name;
3. any other number in its name: the last one that is not the same in all, unless it is that of the epoch;
4. epochs: its own counter, else as in 1.

No score (`acc=0.81`) is a number, nor a version (`-v1`), nor a date with a time. `1.5M`, `20k`, `1e5` and `1,000` are
the numbers that they stand for. A counter that begins anew with every epoch is refused, and so is one that goes
against the step in the names.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

from weight_averaging.averages import SnapshotError
from weight_averaging.offline.forms.source import Source
from weight_averaging.offline.forms.trainers import EPOCH_KEYS, STEP_KEYS
from weight_averaging.words import counted

# Not within another word: "deep_0" and "sweep3" have no epoch.
_STEP = re.compile(r"(?:(?<![a-z])(?:iter(?:ation)?s?|itr|updates?|batch(?:es)?|ba)|steps?)[=_.-]?(\d+)", re.IGNORECASE)
_EPOCH = re.compile(r"(?<![a-z])(?:epochs?|ep)[=_.-]?(\d+)|(\d+)[=_-]?epochs?(?![a-z])", re.IGNORECASE)
_CHECKPOINT = re.compile(r"(?<![a-z])(?:checkpoint|ckpt)[=_.-]?(\d+)$", re.IGNORECASE)  # of a folder
_SUFFIX = re.compile(r"(\.(pt|pth|ckpt|tar|bin|safetensors))+$")
# Numbers that are no place in a run: 0.81, 1e-4, acc=81, the 1 of -v1, that of a copy (1), a date and time.
_NO_PLACE = re.compile(
    r"\d+\.\d+(?:e[+-]?\d+)?|\d+e-\d+|[a-z]+=-?\d+(?:\.\d+)?|(?<![a-z])v\d+(?![a-z\d])|\(\d+\)"
    r"|\d{4}-\d\d-\d\d[+_T -]\d\d[-:]\d\d[-:]\d\d(?:\+\d\d)?",
    re.IGNORECASE,
)
# Numbers in short: 20k, 1.5M, 1e5, 1,000. After a word only where that is a label: the 2b of "abc2b" is none.
_SHORT = re.compile(
    r"(?<![a-z\d])([a-z]*)(\d{1,3}(?:,\d{3})+(?![\d,])|\d+(?:\.\d+)?(?:[kmb](?![a-z\d])|e\+?\d{1,2}(?![a-z\d.])))",
    re.IGNORECASE,
)
_THOUSANDS = {"k": 10**3, "m": 10**6, "b": 10**9}
# Counters of a whole run; others may be of an epoch.
_OF_THE_RUN = re.compile(r"global_?step|num_updates|completed_steps|num_timesteps", re.IGNORECASE)
# Words in the names of what is a copy of a snapshot, or an average already.
_ASIDE = {"best", "last", "latest", "recovery", "tmp", "ave", "avg", "average", "averaged"}
BEST = "'best' in its name"
# First words in the names of what lies beside a model, for the training that goes on.
_SIDECAR = {"optimizer", "optim", "scheduler", "scaler", "rng"}


class Places:
    """What a checkpoint and its name say of its place.

    Args:
        in_own_folder: whether its folder has no other checkpoint.
        constant: keys of counters that are the same in all.

    Attributes:
        step, epoch: (number, where it is from) of the first place that has it, or None.
        named_step, named_epoch: of its name alone.
        numbers: all other numbers in the name, in its order.
    """

    def __init__(self, source: Source, in_own_folder: bool, constant: Collection[str] = ()) -> None:
        name, folder = _SHORT.sub(_long, _SUFFIX.sub("", source.path.name)), ""
        rest = _NO_PLACE.sub(" ", _EPOCH.sub(" ", _STEP.sub(" ", name)))
        self.numbers = [int(number) for number in re.findall(r"\d+", rest)]
        if in_own_folder:
            folder = _SHORT.sub(_long, source.path.absolute().parent.name)
        in_folder = "its folder's name"
        self.named_epoch = _labelled(_EPOCH, name, "its name")
        self.named_step = _labelled(_STEP, name, "its name") or _labelled(_STEP, folder, in_folder)
        self.step = (
            _own(source, STEP_KEYS, constant)
            or self.named_step
            or (None if self.numbers else _labelled(_CHECKPOINT, folder, in_folder))
        )
        self.epoch = _own(source, EPOCH_KEYS, constant) or self.named_epoch or _labelled(_EPOCH, folder, in_folder)


Found = tuple[int, str] | None


def _long(match: re.Match[str]) -> str:
    """A number in short as its digits; as it is where it is no whole one, or after a word that is no label."""
    word, number = match[1], match[2].lower().replace(",", "")
    if word and not (_STEP.search(f"{word}0") or _EPOCH.search(f"{word}0")):
        return match[0]
    value = Fraction(number.rstrip("kmb")) * _THOUSANDS.get(number[-1], 1)
    return word + str(value.numerator) if value.denominator == 1 else match[0]


def _own(source: Source, keys: Sequence[str], but: Collection[str]) -> Found:
    found = ((source.counters[key], f"{key} in it") for key in keys if key in source.counters and key not in but)
    return next(found, None)


def _labelled(pattern: re.Pattern[str], name: str, where: str) -> Found:
    matches = list(pattern.finditer(name))
    if not matches:
        return None
    label = re.sub(r"[\d=_.-]", "", matches[-1][0])
    return int(next(group for group in matches[-1].groups() if group)), f"the number after {label!r} in {where}"


def is_aside(path: Path, others: Sequence[Path]) -> str:
    """Why a file of a folder is left out, in a few words, going by its name; empty if it is not."""
    words = re.split(r"[^a-z]+", _SUFFIX.sub("", path.name).lower())
    if found := sorted(set(words) & _ASIDE):
        return f"{found[0]!r} in its name"
    if (words[0] in _SIDECAR or words[:2] == ["random", "states"]) and not path.is_dir():
        return "for training"
    if path.name == "checkpoint.pth" and any(re.fullmatch(r"\d+epoch\.pth", other.name) for other in others):
        return "to resume training from"  # ESPnet's
    return ""


def copies(sources: Sequence[Source]) -> dict[Path, str]:
    """Checkpoints of a folder that another one has too, or that have no place among the others: with the reason.

    No number is in their names, and their own counter is that of another; or they are litgpt's `final`, without one.
    """
    own = {source.path: Places(source, False) for source in sources}
    named = {p.step[0]: path for path, p in own.items() if p.step is not None and re.search(r"\d", path.name)}
    unknown = {path: "its step is not known" for path, p in own.items() if path.name == "final" and p.step is p.epoch}
    return (unknown if len(named) == len(own) - len(unknown) else {}) | {
        path: f"of the same step as {named[place.step[0]].name}"
        for path, place in own.items()
        if place.step is not None and place.step[0] in named and not re.search(r"\d", path.name)
    }


def numbered(sources: Sequence[Source]) -> tuple[str, dict[Path, int], str]:
    """What counts, "step" or "epoch"; the number of each checkpoint; and where numbers are from, in words.

    Epochs that are counted from 0 get one more, so that the first is 1. So do numbers 0, 1, 2, ... without a label.

    Raises:
        SnapshotError: the place of one is not known, or not certain.
    """
    folders = {source.path.absolute().parent for source in sources}
    constant = [
        key
        for key in (*STEP_KEYS, *EPOCH_KEYS)
        if len(sources) > 1
        and len({source.counters.get(key) for source in sources}) == 1
        and key in sources[0].counters
    ]
    places = {source.path: Places(source, len(folders) == len(sources), constant) for source in sources}
    steps = {path: place.step for path, place in places.items() if place.step is not None}
    epochs = {path: place.epoch for path, place in places.items() if place.epoch is not None}
    named = {path: place.named_epoch for path, place in places.items() if place.named_epoch is not None}
    bare, certain = _bare({path: place.numbers for path, place in places.items()})
    if all(path in epochs and number - epochs[path][0] in (0, 1) for path, (number, _) in bare.items()):
        bare = {}
    same: tuple[str, dict[Path, tuple[int, str]]] | None = None
    if constant:
        told = "epoch" if constant[0] in EPOCH_KEYS else "step"
        same = told, {source.path: (source.counters[constant[0]], f"{constant[0]} in it") for source in sources}
    for unit, found in (("step", steps), ("epoch", named), ("step", bare), ("epoch", epochs)):
        if len(found) < len(places):
            continue
        if len(places) > 1 and len({number for number, _ in found.values()}) == 1:
            same = same or (unit, found)  # a counter that does not count
            continue
        if found is bare and not certain:
            first = next(iter(places))
            raise SnapshotError(
                f"{first}: its name has {len(places[first].numbers)} numbers, which put the checkpoints in different "
                "orders: say which one is the step, by --step-from name:1, name:2 or the key in it"
            )
        if unit == "step":
            _refuse_other_orders(places, found, epochs)
        return _counted(unit, found, is_bare=found is bare)
    if same is not None:
        return _counted(*same, is_bare=False)
    unit, found = max((("step", steps), ("epoch", epochs), ("step", bare)), key=lambda pair: len(pair[1]))
    path = next(path for path in places if path not in found)
    others = f", and that of {counted(len(found), 'other')} is" if found else ""
    raise SnapshotError(
        f"{path}: its {unit} is not known{others}; put it into the name, as in step_1000{path.suffix}, or say where it "
        "is by --step-from"
    )


def _refuse_other_orders(
    places: Mapping[Path, Places], steps: Mapping[Path, tuple[int, str]], epochs: Mapping[Path, tuple[int, str]]
) -> None:
    """SnapshotError if steps do not grow with those in the names, or with epochs where they may be of one or none."""
    named = {path: place.named_step for path, place in places.items() if place.named_step is not None}
    of_the_run = all(_OF_THE_RUN.search(where + path.name) for path, (_, where) in steps.items())
    for rival in (named, {} if of_the_run else epochs):
        if len(rival) < len(steps):
            continue
        ordered = sorted(steps, key=lambda path: (rival[path][0], steps[path][0]))
        for one, after in pairwise(ordered):
            (earlier, _), (mine, where) = steps[one], steps[after]
            (first, place), (second, _) = rival[one], rival[after]
            if first < second and mine <= earlier:
                raise SnapshotError(
                    f"{after}: {where} is {mine} after {earlier} of {one.name}, while {place} goes from {first} to "
                    f"{second}: one of them begins anew on the way; say what counts, by --step-from name:1, name:2, "
                    "order or a key"
                )


def _counted(unit: str, found: Mapping[Path, tuple[int, str]], is_bare: bool) -> tuple[str, dict[Path, int], str]:
    """See `numbered`."""
    numbers = {path: number for path, (number, _) in found.items()}
    ordered = sorted(numbers.values())
    from_0 = ordered[0] == 0 and (unit == "epoch" or (is_bare and ordered[:2] in ([0], [0, 1])))
    origins = Counter(where for _, where in found.values())
    told = [where + (f" ({count} of {len(found)})" if len(origins) > 1 else "") for where, count in origins.items()]
    rule = "; ".join(told) + (", counted from 0: one more each" if from_0 else "")
    return unit, {path: number + from_0 for path, number in numbers.items()}, rule


def _bare(names: Mapping[Path, Sequence[int]]) -> tuple[dict[Path, tuple[int, str]], bool]:
    """The last number of names that is not the same in all, and whether others would not put them in another order."""
    counts = {len(numbers) for numbers in names.values()}
    if len(counts) > 1 or not counts:
        where = "the last number in its name"
        numbered_ones = {path: numbers for path, numbers in names.items() if numbers}
        ordered = sorted((numbers[-1], numbers[0]) for numbers in numbered_ones.values())
        agree = all(one[1] <= after[1] for one, after in pairwise(ordered))
        return {path: (numbers[-1], where) for path, numbers in numbered_ones.items()}, agree
    columns = list(zip(*names.values()))
    if not columns:
        return {}, True
    changing = [column for column in columns if len(set(column)) > 1] or columns[-1:]
    where = "the number in its name" if len(columns) == 1 else "the last number in its name that is not the same in all"
    orders = [sorted(pairs) for pairs in (list(zip(changing[-1], column)) for column in changing[:-1])]
    certain = all(one[1] <= after[1] for order in orders for one, after in pairwise(order))
    return {path: (number, where) for path, number in zip(names, changing[-1])}, certain


def from_place(sources: Sequence[Source], place: str) -> tuple[str, dict[Path, int], str]:
    """The same as `numbered`, with the place as a user says it.

    Args:
        place: `order` is 1, 2, ... as the checkpoints come. `name` and `folder` are the last number in it, `name:1` and
            `name:-2` its first and its last but one. Anything else is a key of the checkpoint, with dots leading
            further in.
    Raises:
        SnapshotError: a checkpoint has no number there.
    """
    if place == "order":
        return "step", {source.path: number for number, source in enumerate(sources, start=1)}, "their order"
    where, _, index = place.partition(":")
    number_of: Callable[[Source], int | None]
    if where in ("name", "folder") and re.fullmatch(r"-?\d+|", index) and index != "0":
        at = int(index or -1)

        def number_of(source: Source) -> int | None:
            path = source.path.absolute()
            text = _SUFFIX.sub("", path.name) if where == "name" else path.parent.name
            numbers = re.findall(r"\d+", _SHORT.sub(_long, text))
            at_hand = -len(numbers) <= at <= len(numbers)
            return int(numbers[at - 1 if at > 0 else at]) if at_hand else None

        told = f"number {at} in" if index else "the last number in"
        told += " its name" if where == "name" else " its folder's name"
    else:
        number_of, told = (lambda source: source.counter(place)), f"{place} in it"
    found: dict[Path, int] = {}
    for source in sources:
        if (number := number_of(source)) is None:
            raise SnapshotError(f"{source.path} has no number at --step-from={place}")
        found[source.path] = number
    unit = "epoch" if "epoch" in place else "step"
    return unit, found, told

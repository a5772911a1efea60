"""Snapshots of a run, whoever wrote them: which steps there are, and the weights of each.

Forms of checkpoints: `weight_averaging.offline.forms`. Steps: `weight_averaging.offline.reading.order`. Pickles are
read with `weights_only=True`: one that would run code is refused. torch files and safetensors are mapped, not loaded.

A checkpoint may be written while an averager of `weight_averaging.torch` had its average in the model. (The AlgoPerf
harness saves right after an evaluation.) Then it holds the average as its weights. The raw ones are in the averager's
own state, wherever in the checkpoint that is. Those come out here.
"""

import copy
import functools
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from torch import Tensor

from weight_averaging.averages import SnapshotError
from weight_averaging.offline.forms import INSTEAD_OF_FOLDERS, WANTED, is_checkpoint, open_checkpoint
from weight_averaging.offline.forms.source import NoModelError, Source, key_of
from weight_averaging.offline.forms.strangers import NOT_READ, other_folder
from weight_averaging.offline.forms.weights_of_folder import is_folder, is_run_in
from weight_averaging.offline.layouts import Layout, check_alike, nbytes
from weight_averaging.offline.reading.checksums import Checksums
from weight_averaging.offline.reading.courses import check_one_course, of_another_course
from weight_averaging.offline.reading.fetching import fetching
from weight_averaging.offline.reading.order import BEST, copies, from_place, is_aside, numbered
from weight_averaging.tensor_names import clean_names


class Snapshots:
    """The snapshots of a folder, or of a list. Of each the names, shapes and types are looked at, the weights are not.

    In a folder, copies of a snapshot (links, `*_best`, `*_last`) and averages are left out. So is a model that lies
    beside `checkpoint-STEP` folders of Hugging Face. A list is taken as it is.

    Args:
        where: a folder of checkpoints, or the checkpoints.
        allow: classes that pickles may be made of, by their full names (`argparse.Namespace`).
        keys: of the models in the checkpoints that are wanted, the main one first (`state_dict_ema`, `state.model`). A
            folder of Hugging Face has them by the name of the folder or file in it. Default: all.
        step_from: where the number of each checkpoint is, for `order.from_place`; default: the rule of `order`.
    Raises:
        SnapshotError: there is none, a file is damaged or would run code, a step is unknown or there twice, or the
            files are of different models. So it is where a Trainer's folder has checkpoints of before it was resumed
            from an earlier one. Every message names the file.

    Attributes:
        folder: the folder; of a list, that of its first.
        paths: the files by step, ascending.
        unit: what steps are: "step", or "epoch" where only epochs are known.
        rule: where the steps are from, in words.
        form: of the latest.
        notes: what is unusual about what is averaged.
        left_out: entries of the folder that are no snapshots of their own, with the reason.
        layout: shape and type by name, without what wrappers add; the same in all files.
        others: those of the other models in the checkpoints, by KEY:NAME, as far as all checkpoints have them.
        lacking: keys of other models that not all have, or not of the same shapes: they are in no average.
        latest: the names of what averagers leave as training has it, in all files; empty if that is not known.
        frozen: those of `latest` that are frozen.
        nbytes: of one snapshot's weights.
        mapped: a part of a tensor can be read without the rest, in all files.
    """

    def __init__(
        self,
        where: Path | str | Sequence[Path | str],
        allow: Collection[str] = (),
        *,
        step_from: str | None = None,
        keys: Sequence[str] = (),
    ) -> None:
        self._allow, self._keys = tuple(allow), tuple(dict.fromkeys(keys))
        self.left_out: dict[Path, str] = {}
        for one in [where] if isinstance(where, Path | str) else where:
            if isinstance(one, str) and "://" in one:
                raise SnapshotError(f"{one}: give what weight_averaging.offline.remote.Remote().path makes of it")
        if isinstance(where, Path | str):
            self.folder = Path(where)
            entries = self._of_folder()
        else:
            entries = [Path(path) for path in where]
            if not entries:
                raise SnapshotError("no checkpoint is named: a list of snapshots has at least one")
            self.folder = entries[0].parent
        sources = self._look(entries, isinstance(where, Path | str))
        chosen = list(sources.values())
        self.unit, numbers, self.rule = numbered(chosen) if step_from is None else from_place(chosen, step_from)
        found: dict[int, Path] = {}
        for path, number in numbers.items():
            if number in found:
                raise SnapshotError(f"{found[number]} and {path} are both of {self.unit} {number}: remove one")
            found[number] = path
        self.paths = dict(sorted(found.items()))
        if isinstance(where, Path | str):
            check_one_course(self.paths)
        latest = sources[self.paths[self.steps[-1]]]
        self.form = latest.form
        self.notes = list(dict.fromkeys(source.note for source in sources.values() if source.note))
        self._find_others(list(sources.values()))
        self.latest = set(frozenset.intersection(*(source.latest for source in sources.values())))
        self.frozen = set(frozenset.intersection(*(source.frozen for source in sources.values())))
        self.mapped = all(source.mapped for source in sources.values())
        self.nbytes = nbytes(self.layout)

    def _find_others(self, sources: Sequence[Source]) -> None:
        everywhere = dict(sources[0].others)
        for source in sources[1:]:
            everywhere = {name: kind for name, kind in everywhere.items() if source.others.get(name) == kind}
        lacking = {key_of(name) for source in sources for name in source.others if name not in everywhere}
        self.lacking = sorted(lacking)
        self.others: Layout = {name: kind for name, kind in everywhere.items() if key_of(name) not in lacking}

    def _of_folder(self) -> list[Path]:
        if not self.folder.is_dir():
            raise SnapshotError(f"{self.folder} is not a folder")
        entries = sorted(path for path in self.folder.iterdir() if is_checkpoint(path))
        if is_folder(self.folder):
            if not (folders := [path for path in entries if path.is_dir() and is_run_in(path)]):
                raise SnapshotError(f"{self.folder} is one Hugging Face checkpoint: name the folder that has several")
            self.left_out |= {path: "not a checkpoint-STEP" for path in entries if path not in folders}
            entries = folders
        seen: dict[tuple[int, int], Path] = {}
        for path in sorted(entries, key=lambda path: (bool(is_aside(path, entries)), path.is_symlink())):
            try:
                about = path.stat()
            except OSError as error:  # a link to what is not there, or to itself
                self.left_out[path] = f"cannot be opened: {error.strerror}"
                continue
            same = seen.setdefault((about.st_dev, about.st_ino), path)
            if reason := is_aside(path, entries) or (f"the same file as {same.name}" if same != path else ""):
                self.left_out[path] = reason
        for path, step in of_another_course(self.folder).items():
            self.left_out[path] = f"of before the run went back: it took another course at step {step}"
        kept = [path for path in entries if path not in self.left_out]
        numbered_ones = len(entries) > 1 and all(re.search(r"\d", path.name) for path in entries)
        if not kept and numbered_ones and set(self.left_out.values()) == {BEST}:  # copies of what is not there
            kept, self.left_out = entries, {}
        if not kept:
            self._nothing()
        alike = {_pattern(path) for path in kept if path.is_dir()}
        for path in sorted(self.folder.iterdir()) if alike else ():  # or nobody would miss the latest
            if path.is_dir() and _pattern(path) in alike and not is_checkpoint(path):
                self.left_out[path] = "no whole checkpoint, as while it is being written"
        return kept

    def _nothing(self) -> NoReturn:
        if self.left_out:
            path, reason = next(iter(self.left_out.items()))
            raise SnapshotError(
                f"{self.folder} holds no snapshot but what is left out, as {path.name} is ({reason}): name the files"
            )
        for path in (self.folder, *sorted(path for path in self.folder.iterdir() if path.is_dir())):
            if other := other_folder(path):
                raise SnapshotError(f"{path} is {other}, which is not read: {INSTEAD_OF_FOLDERS}")
        for path in sorted(self.folder.iterdir()):
            if path.suffix in NOT_READ and path.is_file():
                open_checkpoint(path)  # which says what it is
        raise SnapshotError(f"{self.folder} holds no snapshot: {WANTED}")

    def _look(self, entries: list[Path], in_folder: bool) -> dict[Path, Source]:
        """Open the checkpoints; of a folder without those that are no snapshots, as their contents say."""
        sources: dict[Path, Source] = {}
        for path in entries:
            try:
                source = open_checkpoint(path, self._allow, self._keys)
            except NoModelError as error:
                if not in_folder or not error.for_training:
                    raise
                self.left_out[path] = "for training"
                continue
            if in_folder and source.average:
                self.left_out[path] = f"an average already, {source.average}"
                continue
            if path in sources:
                raise SnapshotError(f"{path} is named twice")
            sources[path] = source
        if in_folder:
            self.left_out |= copies(list(sources.values()))
            sources = {path: source for path, source in sources.items() if path not in self.left_out}
        if not sources:
            self._nothing()
        return self._agree(sources)

    def _agree(self, sources: dict[Path, Source]) -> dict[Path, Source]:
        """Set `layout`, if they are alike. The checkpoints in the order in which they count where no step is known."""
        check_alike({path: dict(zip(names_of(source), source.layout.values())) for path, source in sources.items()})
        first = next(iter(sources.values()))
        self.layout: Layout = dict(zip(names_of(first), first.layout.values()))
        return sources

    @property
    def steps(self) -> list[int]:
        return list(self.paths)

    def open(self, step: int) -> Source:
        """The checkpoint of a step."""
        return open_checkpoint(self.paths[step], self._allow, self._keys)

    def reader(self, step: int) -> Source:
        """The checkpoint of a step, to read tensors as `layout` has them."""
        return self.open(step)

    def only(self, steps: Collection[int]) -> "Snapshots":
        """Those of these steps alone."""
        some = copy.copy(self)
        some.paths = {step: path for step, path in self.paths.items() if step in steps}
        some.form = some.open(some.steps[-1]).form
        return some

    @functools.cached_property
    def learning_rates(self) -> dict[int, float]:
        """By step, where a checkpoint has one: of its optimizers, or else of their schedulers or a Trainer's log.

        SnapshotError if the only file that has one cannot be read.
        """
        rates = {step: self.open(step).learning_rate() for step in self.steps}
        return {step: rate for step, rate in rates.items() if rate is not None}

    def latest_up_to(self, step: int) -> int:
        """The step of the latest snapshot up to `step`."""
        return max(number for number in self.steps if number <= step)

    def saved_names(self, source: Source) -> dict[str, str]:
        """What the tensors are called in a checkpoint, the `source`, by their names in `layout` and `others`."""
        return dict(zip(names_of(source), source.layout)) | {
            name: name for name in self.others if name in source.others
        }

    def state(self, step: int, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """The weights of one snapshot, or those of these names; read when they are used, where that is possible."""
        source = self.reader(step)
        originals = self.originals(source, names)
        tensors = source.read(list(originals.values()))
        return {name: tensors[original] for name, original in originals.items()}

    def originals(self, source: Source, names: Iterable[str] | None = None) -> dict[str, str]:
        """What the tensors of these names, or all of the model, are called in a checkpoint, the `source`.

        SnapshotError if one is not in it.
        """
        originals = self.saved_names(source)
        chosen = list(self.layout if names is None else names)
        if lacking := [name for name in chosen if name not in originals]:
            raise SnapshotError(f"{source.path} has changed: {lacking[0]} is not in it any more")
        return {name: originals[name] for name in chosen}

    def stream(self, steps: Iterable[int], names: list[str] | None = None) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """(step, weights) of each of these steps, one at a time; the system is asked for the next one beforehand."""
        steps = list(steps)
        whole = names is None or len(names) == len(self.layout)  # of a few tensors the system would fetch too much
        for step, after in zip(steps, [*steps[1:], None]):
            with fetching([self.paths[after]] if whole and after is not None else []):
                source = self.reader(step)
                originals = self.originals(source, names)
                tensors = source.read(list(originals.values()))
                yield step, {name: tensors[original] for name, original in originals.items()}
                checksums = Checksums(source)
                for original, tensor in tensors.items():  # now that they are in memory
                    checksums.see(original, tensor)


def _pattern(path: Path) -> str:
    """A name with the same sign for every number."""
    return re.sub(r"\d+", "#", path.name)


def names_of(source: Source) -> list[str]:
    """The names of a checkpoint's tensors without what wrappers add."""
    return list(source.layout) if source.own_names else clean_names(list(source.layout))

"""What the commands share: their arguments, how far they are, and what they say in the end. Imports no torch."""

import argparse
import contextlib
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from weight_averaging.averages import SnapshotError
from weight_averaging.placement import size
from weight_averaging.words import counted

if TYPE_CHECKING:
    from weight_averaging.offline import Snapshots
    from weight_averaging.offline.layouts import Layout


def add_reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-class",
        action="append",
        default=[],
        metavar="NAME",
        help="let pickles be made of this class, if you trust it, as argparse.Namespace",
    )


def add_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--key",
        action="append",
        default=[],
        metavar="KEY",
        help="the model to take, where checkpoints have several, as state_dict_ema or state.model; may be repeated,\n"
        "the first is the main one (default: all, each on its own)",
    )


def add_step_from(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--step-from",
        metavar="PLACE",
        help="where each checkpoint's step is: a key in it, name (the last number there), name:1, folder (the name of\n"
        "its folder), or order (as named); default: the rule of docs/offline.md, which prints what it takes",
    )


def add_writing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        help="file to write: .safetensors, or .pt, .pth, .ckpt, ... for a checkpoint like those read;\n"
        "a folder for Hugging Face checkpoints, or for several averages",
    )
    parser.add_argument("--overwrite", action="store_true", help="write over what is there already")
    parser.set_defaults(written=lambda: None)  # called when files are in place: URLs are uploaded then
    parser.add_argument("--float32", action="store_true", help="write float32 also where checkpoints have fewer bits")
    parser.add_argument(
        "--plain-names", action="store_true", help="drop from names what DDP, torch.compile and FSDP add (module., ...)"
    )
    parser.add_argument(
        "--exclude",
        action="append",
        metavar="NAME",
        help="tensor, module or pattern that is taken from the latest as it is",
    )
    parser.add_argument(
        "--include",
        action="append",
        metavar="NAME",
        help="tensor, module or pattern that is averaged though frozen, a mask, ...",
    )
    parser.add_argument(
        "--recompute-batch-norm",
        metavar="MODULE:FUNCTION",
        help="recompute batch-norm statistics of the average: your function gives (model, training batches)",
    )
    parser.add_argument(
        "--memory-gb", "--memory_gb", type=_positive, default=4.0, help="memory to stay within (default: 4)"
    )


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number > 0, not {text}")
    return value


def check_there(paths: Sequence[Path]) -> None:
    """SnapshotError if one is not."""
    if missing := [path for path in paths if not path.exists()]:
        raise SnapshotError(f"{missing[0]} is not there")


def opened(
    paths: Sequence[Path], allow: Sequence[str], step_from: str | None = None, keys: Sequence[str] = ()
) -> "Snapshots":
    """The snapshots of a folder, or of the checkpoints that are named; tells what is left out."""
    check_there(paths)
    from weight_averaging.offline import Snapshots
    from weight_averaging.offline.forms import is_checkpoint
    from weight_averaging.offline.forms.weights_of_folder import is_folder, is_run_in

    folder = len(paths) == 1 and paths[0].is_dir()
    if folder and is_checkpoint(paths[0]):  # one, or the output of a Trainer with several in it
        several = not is_folder(paths[0])
        inner = (path for path in paths[0].iterdir() if path.is_dir() and (several or is_run_in(path)))
        folder = any(map(is_checkpoint, inner))
    snapshots = Snapshots(paths[0] if folder else paths, allow, step_from=step_from, keys=keys)
    if snapshots.left_out:
        shown = [f"{path.name} ({reason})" for path, reason in snapshots.left_out.items()]
        print(f"left out: {', '.join(shown)}")
    for note in snapshots.notes:
        print(note)
    return snapshots


def not_averaged(args: argparse.Namespace, snapshots: "Snapshots", layout: "Layout | None" = None) -> set[str]:
    """The tensors that come from the latest snapshot, which is told; of the model, or of a `layout`."""
    from weight_averaging.offline import latest_of

    latest = latest_of(layout or snapshots.layout, args.include, args.exclude, snapshots.latest)
    if latest:
        shown = ", ".join(sorted(latest)[:5]) + (", ..." if len(latest) > 5 else "")
        print(f"not averaged but taken from the latest snapshot ({counted(len(latest), 'tensor')}): {shown}")
    return latest


def keys_of(names: Iterable[str]) -> str:
    """Models beside by their keys, with the number of tensors of each."""
    from weight_averaging.offline.forms.source import key_of

    return ", ".join(f"{key} ({counted(count, 'tensor')})" for key, count in Counter(map(key_of, names)).items())


def listed(numbers: Sequence[int]) -> str:
    """Steps in a line: all of a dozen, else the first two and the last."""
    if len(numbers) <= 12:
        return ", ".join(map(str, numbers))
    return f"{numbers[0]}, {numbers[1]}, ..., {numbers[-1]}"


@contextlib.contextmanager
def parents_made(paths: Iterable[Path]) -> Iterator[None]:
    """The folders that files are written into, made where they are not there; an error in the block removes those."""
    made: list[Path] = []
    for path in paths:
        new = [folder for folder in path.parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        made += reversed(new)
    try:
        yield
    except BaseException:
        for folder in reversed(made):
            with contextlib.suppress(OSError):  # others have written into it
                folder.rmdir()
        raise


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[int], object]]:
    """A bar of bytes on stderr where that is a terminal: tqdm's if it is installed (the extra `cli`), else a line."""
    try:
        from tqdm import tqdm
    except ImportError:
        bar = _Line(total)
        try:
            yield bar.add
        finally:
            bar.close()
    else:
        with tqdm(total=total, unit="B", unit_scale=True, disable=None) as shown:
            yield shown.update


class _Line:
    """How far it is, in percent."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._shown = total, 0, -1
        self._terminal = sys.stderr.isatty()

    def add(self, count: int) -> None:
        self._done += count
        percent = 100 * self._done // max(self._total, 1)
        if self._terminal and percent != self._shown:
            self._shown = percent
            print(f"\r{percent:3d} % of {size(self._total)}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._shown >= 0:
            print(file=sys.stderr)

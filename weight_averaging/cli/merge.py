"""one model of several, with weights of your choice

The checkpoints may be of any runs and steps, as long as the models are alike. Their types may differ, and the result
has the widest; one's head may be its embedding. Without --weights all count the same (a "model soup"). For the
checkpoints of one run see `average`, which also has merges that stand for a learning-rate decay.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from weight_averaging.averages import LAWA, Average, SnapshotError, Weighted
from weight_averaging.cli.average import write
from weight_averaging.cli.common import add_key, add_reading, add_writing, check_there

EXAMPLES = """\
for example:
  weight-averaging merge seed1.pt seed2.pt seed3.pt --out soup.pt
      the plain mean of three fine-tuned models
  weight-averaging merge --weights a.safetensors=.5,b.safetensors=.3,c.safetensors=.2 --out merged.safetensors
      a weighted one
  weight-averaging merge one/checkpoint-900 two/checkpoint-800 --weights checkpoint-900=.7,checkpoint-800=.3 --out both
      of Hugging Face folders, a folder
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", metavar="PATH", type=Path, nargs="*", help="the checkpoints")
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="NAME=W,...",
        help="the weight of each, by its path or name; their sum is 1",
    )
    parser.add_argument(
        "--vocabulary",
        choices=("smallest", "largest"),
        help="where embeddings differ in their rows: those that all have, or all, some being of those that have them",
    )
    add_writing(parser)
    add_reading(parser)
    add_key(parser)


@dataclass(frozen=True, kw_only=True)
class Mean(LAWA):
    """The plain mean of models that are of no run: the same numbers as LAWA's."""

    def __str__(self) -> str:
        return f"mean of {self.window} models"


def run(args: argparse.Namespace) -> None:
    weights = _weights(args.weights, args.paths)
    paths = list(weights or args.paths)
    if not paths:
        raise SnapshotError("say what to merge: a.pt b.pt, or --weights a.pt=.5,b.pt=.5")
    if len(paths) == 1:
        several = ", or average the checkpoints of a folder by `weight-averaging average`" if paths[0].is_dir() else ""
        raise SnapshotError(f"{paths[0]} is one model, and merging takes two or more: name others{several}")
    if args.out is None:
        raise SnapshotError("say where to write: --out model.safetensors")
    average: Average = Mean(window=len(paths))
    if weights:
        try:
            average = Weighted(weights=tuple(weights.values()))
        except ValueError as error:
            raise SnapshotError(f"--weights: {error}") from None
    check_there(paths)
    from weight_averaging.offline.reading.unlike import Models

    shares = average.coefficients(len(paths))
    snapshots = Models(paths, args.allow_class, weights=shares, vocabulary=args.vocabulary, keys=args.key)
    if weights:
        average = Weighted(weights=tuple(snapshots.weights))
    for (number, path), share in zip(snapshots.paths.items(), snapshots.weights, strict=True):
        print(f"{number}: {path}, weight {share:.6g}")
    for line in (*snapshots.notes, *snapshots.said):
        print(line)
    kind = f"weighted mean of {len(paths)} models" if weights else str(average)
    write(args, snapshots, [(average, len(paths))], title=kind)


def _weights(flags: Sequence[str], paths: Sequence[Path]) -> dict[Path, float]:
    """The weight of each checkpoint, in the order of `paths` if there are any. SnapshotError if they do not fit."""
    found: dict[Path, float] = {}
    for item in ",".join(flags).split(",") if flags else ():
        name, equals, value = item.rpartition("=")
        try:
            weight = float(value)
        except ValueError:
            raise SnapshotError(f"--weights: expected NAME=NUMBER, not {item!r}") from None
        same = [path for path in paths if name in (str(path), path.name, path.stem)]
        if not equals or len(same) > 1 or (paths and not same):
            raise SnapshotError(f"--weights: {name or item} is {len(same) or 'none'} of the checkpoints named")
        path = same[0] if same else Path(name)
        if path in found:
            raise SnapshotError(f"--weights: {name} is there twice")
        found[path] = weight
    if found and (lacking := [path for path in paths if path not in found]):
        raise SnapshotError(f"--weights: there is none for {lacking[0]}")
    return {path: found[path] for path in paths} if paths and found else found

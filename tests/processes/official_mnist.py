"""Writes an MNIST of made-up images, 60,000 and 10,000 of them as the official workload expects.

python tests/processes/official_mnist.py FOLDER
"""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

FEATURES = tfds.features.FeaturesDict(
    {"image": tfds.features.Image(shape=(28, 28, 1)), "label": tfds.features.ClassLabel(num_classes=10)}
)
DIFFERENT = 500  # images, over and over: to encode 70,000 takes minutes


def records(seed: int, count: int) -> list[bytes]:
    """Serialised examples: one pattern a class, plus noise."""
    rng = np.random.RandomState(seed)
    patterns = np.random.RandomState(0).randint(0, 200, (10, 28, 28, 1))
    examples = []
    for label in rng.randint(0, 10, DIFFERENT):
        image = (patterns[label] + rng.randint(0, 56, (28, 28, 1))).astype(np.uint8)
        examples.append(FEATURES.serialize_example(FEATURES.encode_example({"image": image, "label": int(label)})))
    return list(itertools.islice(itertools.cycle(examples), count))


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    splits = {"train": records(1, 60_000), "test": records(2, 10_000)}
    described = []
    for name, examples in splits.items():
        with tf.io.TFRecordWriter(str(folder / f"mnist-{name}.tfrecord-00000-of-00001")) as writer:
            for example in examples:
                writer.write(example)
        size = str(sum(map(len, examples)))
        described.append({"name": name, "numBytes": size, "shardLengths": [str(len(examples))]})
    FEATURES.save_config(str(folder))
    info = {"name": "mnist", "version": "3.0.1", "fileFormat": "tfrecord", "splits": described}
    (folder / "dataset_info.json").write_text(json.dumps(info))


if __name__ == "__main__":
    main(Path(sys.argv[1]) / "mnist" / "3.0.1")

"""Files as tensorflow_datasets leaves them, of examples that are made here."""

import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write(
    root: Path,
    name: str,
    version: str,
    splits: Mapping[str, Iterable[dict[str, Any]]],
    config: str | None = None,
    counts: Mapping[str, int] | None = None,
) -> None:
    """One file a split, with the features of the data set's own builder, whose code the package has.

    The description is the builder's too: what its file lacks is None after loading, and wmt's pipeline reads the
    supervised keys.

    Args:
        counts: of a split's examples, which are then written over and over: to encode one takes a millisecond.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    builder = tfds.builder(f"{name}/{config}:{version}" if config else f"{name}:{version}", data_dir=root)
    features, folder = builder.info.features, Path(builder.data_dir)
    folder.mkdir(parents=True)
    described = []
    for split, examples in splits.items():
        records: Iterable[bytes] = (
            features.serialize_example(features.encode_example(example)) for example in examples
        )
        if counts is not None:
            records = itertools.islice(itertools.cycle(records), counts[split])
        sizes = []
        with tf.io.TFRecordWriter(str(folder / f"{name}-{split}.tfrecord-00000-of-00001")) as file:
            for record in records:
                file.write(record)
                sizes.append(len(record))
        described.append({"name": split, "numBytes": str(sum(sizes)), "shardLengths": [str(len(sizes))]})
    features.save_config(str(folder))
    information = {**json.loads(builder.info.as_json), "fileFormat": "tfrecord", "splits": described}
    (folder / "dataset_info.json").write_text(json.dumps(information))

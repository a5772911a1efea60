"""Averages as flags describe them: fields by their annotations, and a user's own class."""

import sys
from argparse import ArgumentParser

import pytest
import torch

from scripts import average_checkpoints
from tests.weight_averaging.cli.test_command import command
from weight_averaging.averages import EMA, LAWA, Merge, SnapshotError, Weighted
from weight_averaging.cli.descriptions import add_averages, averages_of
from weight_averaging.offline import Plan

MINE = """
from dataclasses import dataclass

from weight_averaging.averages import LAWA, Average
from weight_averaging.averages.average import NUMBERS


@dataclass(frozen=True, kw_only=True)
class Polynomial(Average):  # polynomial-decay averaging, Shamir and Zhang (ICML 2013)
    eta: float = 3.0
    is_recursive = True

    def weight(self, number, functions=NUMBERS):
        return (self.eta + 1) / (number + self.eta)


@dataclass(frozen=True, kw_only=True)
class Ends(Average):  # a window: the first and the last of it
    window: int
    share: float = 0.5
    label: int | str | None = None
    more: dict[str, int] | None = None
    pair: tuple[int, int] | None = None

    def coefficients(self, count):
        return [self.share, *[0.0] * (count - 2), 1 - self.share]


@dataclass(frozen=True, kw_only=True)
class Nothing(Average):
    window: int = 3


@dataclass(frozen=True, kw_only=True)
class Windowless(Average):
    def coefficients(self, count):
        return [1.0]


@dataclass(frozen=True, kw_only=True)
class Weightless(Average):
    is_recursive = True


@dataclass(frozen=True, kw_only=True)
class Odd(Average):
    what: "Missing" = None


@dataclass(frozen=True, kw_only=True)
class Leaves(Average):
    window: int = 3

    def coefficients(self, count):
        raise SystemExit(0)


number = 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with a module and a run of five snapshots."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "faulty.py").write_text("import weight_averaging\n1 / 0\n")
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit('bye')\n")
    (tmp_path / "lacking.py").write_text("import there_is_none\n")
    (tmp_path / "other.py").write_text(MINE)
    (tmp_path / "run").mkdir()
    for step, state in snapshots().items():
        torch.save(state, tmp_path / "run" / f"step_{step}.pt")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield tmp_path
    assert sys.path == before
    for name in ("mine", "faulty", "lacking", "leaving", "other"):
        sys.modules.pop(name, None)


def snapshots() -> dict[int, dict[str, torch.Tensor]]:
    return {
        step: {"w": torch.randn(50, generator=torch.Generator().manual_seed(step))} for step in (10, 20, 30, 40, 50)
    }


def described(*flags):
    parser = ArgumentParser()
    add_averages(parser)
    return averages_of(parser.parse_args(flags))


def test_fields_are_read_by_their_annotations(here):
    assert described("--merge=shape=1-sqrt,window=20") == [Merge(shape="1-sqrt", window=20)]
    assert described("--lawa=window=2:3,allow_partial=true") == [
        LAWA(window=2, allow_partial=True),
        LAWA(window=3, allow_partial=True),
    ]
    assert described("--ema=decay=.5,warmup=True:false") == [EMA(decay=0.5, warmup=True), EMA(decay=0.5)]
    assert described("--ema=decay=.5,warmup=false", "--ema=decay=.5") == [EMA(decay=0.5)]
    assert described("--average=weight_averaging.averages:Weighted,weights=.5,.5:1.5,-.5,interval=10") == [
        Weighted(weights=(0.5, 0.5), interval=10),
        Weighted(weights=(1.5, -0.5), interval=10),
    ]
    (ends,) = described("--average=mine:Ends,window=4,share=.25,label=a=b,start=7")
    assert (ends.window, ends.share, ends.label, ends.more, ends.start) == (4, 0.25, "a=b", None, 7)
    assert [one.label for one in described("--average=mine:Ends,window=4,label=3:three")] == [3, "three"]
    # What an average is called can be typed again.
    weighted = Weighted(weights=(0.25, 0.75), interval=5)
    words = str(weighted).split()
    assert described(f"--average=weight_averaging.averages:Weighted,{','.join(words[1:])}") == [weighted]


def test_the_current_folder_comes_first(here, monkeypatch):
    (here / "elsewhere").mkdir()
    (here / "elsewhere" / "mine.py").write_text("")
    monkeypatch.setattr(sys, "path", [str(here / "elsewhere"), *sys.path])
    assert len(described("--average=mine:Polynomial")) == 1
    assert sys.path[0] == str(here / "elsewhere")
    monkeypatch.undo()


def polynomial(eta: float) -> torch.Tensor:
    average = None
    for number, state in enumerate(snapshots().values(), start=1):
        value = state["w"].double()
        weight = (eta + 1) / (number + eta)
        average = value if average is None else (1 - weight) * average + weight * value
    return average


@pytest.mark.parametrize("entry", ["command", "script"])
def test_an_average_of_ones_own_is_that_of_float64(here, capsys, entry):
    arguments = ["run", "--average=mine:Polynomial,eta=3:1", "--average", "mine:Polynomial", "--out=out"]
    if entry == "command":
        said = command(capsys, "average", *arguments)
    else:
        average_checkpoints.main(arguments)
        said = capsys.readouterr().out
    assert "polynomial eta=1.0 as of step 50, made of 5 snapshots, steps 10, 20, 30, 40, 50" in said
    from safetensors.torch import load_file

    for eta, name in ((3.0, "polynomial"), (1.0, "polynomial_eta1.0")):
        made = load_file(here / "out" / f"{name}_step_50.safetensors")["w"]
        torch.testing.assert_close(made.double(), polynomial(eta), rtol=1e-6, atol=1e-6)
    (average,) = described("--average=mine:Polynomial,eta=1")
    (result,) = Plan([(average, 50)], list(snapshots())).run(snapshots().items())
    assert torch.equal(result.state["w"], made)
    assert len(list((here / "out").iterdir())) == 2


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("mine", "expected MODULE:CLASS,FIELD=..., as mine:Polynomial,eta=3"),
        ("mine:", "expected MODULE:CLASS"),
        ("absent:Polynomial", "there is no module absent, in this folder or installed"),
        ("absent.inner:Polynomial", "there is no module absent.inner, in this folder or installed"),
        ("lacking:Polynomial", "lacking cannot be imported: ModuleNotFoundError: No module named 'there_is_none'"),
        ("faulty:Polynomial", "faulty cannot be imported: ZeroDivisionError: division by zero"),
        ("leaving:Polynomial", "leaving cannot be imported: SystemExit: bye"),
        ("mine:Leaves", "Leaves failed: SystemExit: 0"),
        ("mine:Polynomal", "mine has no class Polynomal"),
        ("mine:number", "number is no subclass of weight_averaging.averages.Average"),
        ("mine:dataclass", "dataclass is no subclass of weight_averaging.averages.Average"),
        ("mine:Polynomial,beta=3", "expected eta=..., interval=..., start=..., not 'beta=3'"),
        ("mine:Polynomial,eta=3,4", "expected eta=..., interval=..., start=..., not '4'"),
        ("mine:Polynomial,eta=3,eta=4", "eta=... is there twice"),
        ("mine:Polynomial,eta=three", "eta must be a number, not 'three'"),
        ("mine:Polynomial,interval=2.5", "interval must be a whole number, not '2.5'"),
        ("mine:Polynomial,interval=0", "interval must be a whole number >= 1, not 0"),
        ("mine:Ends", "window=... is missing"),
        ("mine:Ends,window=3,more=a", "more must be dict[str, int], which no flag can give"),
        ("mine:Ends,window=3,pair=1,2", "pair must be tuple[int, int], which no flag can give"),
        ("mine:Windowless", "Windowless has no `window` and says not that it is_recursive"),
        ("mine:Nothing", "Nothing says neither its coefficients nor that it is_recursive"),
        ("mine:Weightless", "weightless is no recursion"),
        ("mine:Odd", "the fields' annotations cannot be read: name 'Missing' is not defined"),
        ("weight_averaging.averages:Weighted,weights=.5,half", "weights must be a number, not 'half'"),
        ("weight_averaging.averages:Weighted,weights=.5,.4", "weights must have the sum 1, not 0.9"),
    ],
)
def test_what_cannot_be_understood_ends_in_one_line(here, capsys, flag, says):
    with pytest.raises(SnapshotError) as error:
        described(f"--average={flag}")
    assert str(error.value).startswith(f"--average {flag}: ")
    assert says in str(error.value)
    said = command(capsys, "average", "run", "--average", flag, "--out=out.pt")
    assert said == f"error: {error.value}\n"


def test_two_classes_of_one_name_do_not_share_a_file(here, capsys):
    said = command(capsys, "average", "run", "--average=mine:Polynomial", "--average=other:Polynomial", "--out=out")
    assert said.endswith("error: --out=out: two averages would have one name there: ask for them one at a time\n")
    assert not (here / "out").exists()

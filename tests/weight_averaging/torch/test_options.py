"""Arguments of LAWA, EMA, Averages, Averager: written once, known to type checkers and `help()`, refused in a line."""

import inspect
import subprocess
import sys

import pytest
import torch

from tests.support import ROOT
from weight_averaging import EMA, LAWA, Averager, Averages, averages
from weight_averaging.torch.options import DEFAULTS, Options

LAWAS = {"interval": 1, "window": 2}
DOORS = [
    ("LAWA", lambda model, **given: LAWA(model, **LAWAS, **given)),
    ("LAWA.for_run", lambda model, **given: LAWA.for_run(model, 100, **given)),
    ("EMA", lambda model, **given: EMA(model, decay=0.5, **given)),
    ("EMA.for_run", lambda model, **given: EMA.for_run(model, 100, **given)),
    ("Averages", lambda model, **given: Averages(model, [averages.LAWA(**LAWAS)], **given)),
    ("Averager", lambda model, **given: Averager(model, averages.LAWA(**LAWAS), **given)),
]
KNOWN = [LAWA, LAWA.for_run, EMA, EMA.for_run, Averages, Averager]


def test_every_option_has_a_default():
    assert set(Options.__annotations__) == set(DEFAULTS)


@pytest.mark.parametrize(("name", "door"), DOORS, ids=[name for name, _ in DOORS])
def test_a_wrong_name_is_one_line_that_names_the_right_one(name, door):
    model = torch.nn.Linear(1, 1)
    with pytest.raises(TypeError) as raised:
        door(model, bufers="latest")
    assert str(raised.value) == f"{name} has no argument bufers: did you mean buffers?"
    with pytest.raises(TypeError) as raised:
        door(model, qqq=1)
    assert str(raised.value).startswith(f"{name} has no argument qqq; it takes model, ")


@pytest.mark.parametrize(("name", "door"), DOORS, ids=[name for name, _ in DOORS])
def test_every_option_is_taken(name, door):
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.BatchNorm1d(1))
    averager = door(model, buffers="latest", exclude=["0.bias"], check_finite=False, placement="device")
    assert (averager.buffers, averager.check_finite) == ("latest", False)
    assert averager._weights.names == ["0.weight", "1.weight", "1.bias"]
    with pytest.raises(ValueError, match="buffers must be one of average, latest, recompute, not 'newest'"):
        door(model, buffers="newest")
    with pytest.raises(ValueError, match="placement must be one of auto, device, host, not 'disk'"):
        door(model, placement="disk")
    for group in ("process_group", "model_parallel_group"):
        with pytest.raises(TypeError, match=f"{group} must be a torch.distributed.ProcessGroup that this rank is in"):
            door(model, **{group: -100})  # what `new_group` gives a rank outside of it


@pytest.mark.parametrize("given", [{}, {"start": 7}, {"start": 7, "switch": True, "buffers": "latest"}], ids=str)
def test_for_run_hands_on_what_it_is_given_and_has_the_same_defaults(given):
    model = torch.nn.Linear(1, 1)
    for kind, switch, own in [(LAWA, "allow_partial", {"window": 5}), (EMA, "warmup", {"decay": 4 / 6})]:
        options = {switch if name == "switch" else name: value for name, value in given.items()}
        found = kind.for_run(model, 100, horizon=0.5, window=5, **options)
        assert found.state_dict() == kind(model, interval=10, **own, **options).state_dict()


@pytest.mark.parametrize("function", KNOWN, ids=lambda function: function.__qualname__)
def test_help_names_every_option_with_its_default(function):
    parameters = inspect.signature(function).parameters
    assert {name: parameters[name].default for name in DEFAULTS} == DEFAULTS
    assert not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


WRONG = """\
import torch
from weight_averaging import EMA, LAWA, Averager, Averages, averages

model = torch.nn.Linear(1, 1)
LAWA(model, interval=1, window=2, bufers="latest")
LAWA.for_run(model, 100, bufers="latest")
EMA(model, decay=0.5, bufers="latest")
EMA.for_run(model, 100, bufers="latest")
Averages(model, [averages.LAWA(interval=1, window=2)], bufers="latest")
Averager(model, averages.LAWA(interval=1, window=2), buffers=3)
LAWA.for_run(model, 100, buffers="latest", check_finite=False)
"""


def test_a_type_checker_finds_wrong_names_and_types(tmp_path):
    pytest.importorskip("mypy")  # which those who test with other releases need not have
    (tmp_path / "wrong.py").write_text(WRONG)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", str(tmp_path / "wrong.py")]
    cached = ["--cache-dir", str(ROOT / ".mypy_cache/options")]
    done = subprocess.run([*command, *cached], cwd=ROOT, capture_output=True, text=True, check=False)
    errors = [line.split(": ", 1) for line in done.stdout.splitlines() if "wrong.py" in line and ": error: " in line]
    assert [int(where.rsplit(":", 1)[1]) for where, _ in errors] == [5, 6, 7, 8, 9, 10], done.stdout
    for _, text in errors[:5]:
        assert 'Unexpected keyword argument "bufers"' in text
    assert 'Argument "buffers"' in errors[5][1]


@pytest.mark.parametrize("given", [3, "lawa", LAWA, [averages.LAWA(**LAWAS), None]])
def test_what_is_no_description_is_one_line(given):
    with pytest.raises(TypeError, match=r"an average is described by one of weight_averaging\.averages, not by "):
        Averager(torch.nn.Linear(1, 1), given)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda model: LAWA(model), r"LAWA: missing .*'interval'; it takes model, then by name interval=.*for_run"),
        (lambda model: EMA(model), r"EMA needs a decay=: EMA.for_run\(model, total_updates=...\) chooses one"),
        (lambda model: EMA(model, 0.99), r"EMA: too many positional arguments; it takes model, then by name decay="),
        (lambda model: EMA.for_run(model), r"EMA.for_run: missing a required argument: 'total_updates'"),
    ],
)
def test_what_is_missing_is_named_with_the_way_out(call, line):
    with pytest.raises(TypeError, match=line):
        call(torch.nn.Linear(1, 1))


def test_epochs_in_the_place_of_updates_are_told(caplog):
    LAWA.for_run(torch.nn.Linear(1, 1), total_updates=10)
    assert "10 updates: 4 % of them is one snapshot" in caplog.text
    caplog.clear()
    LAWA.for_run(torch.nn.Linear(1, 1), total_updates=1000)
    LAWA.for_run(torch.nn.Linear(1, 1), total_updates=10, window=1)
    assert "one snapshot" not in caplog.text

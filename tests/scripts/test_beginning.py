"""How the commands begin: a wrong flag and --help need no large package, and Ctrl-C at any moment is one line."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support import ROOT
from weight_averaging import interrupts

SCRIPTS = sorted(
    ".".join(path.relative_to(ROOT / "scripts").with_suffix("").parts)
    for path in (ROOT / "scripts").rglob("*.py")
    if "\n    start(" in path.read_text()
)
SCRIPTS += ["run", "average_checkpoints"]
LARGE = {"torch", "jax", "pandas", "matplotlib", "scipy", "datasets", "transformers"}
# Ends as the script does; then says which modules are there.
IMPORTED = """
import runpy, sys
try:
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
except SystemExit as end:
    print(end.code, *{name for name in sys.modules if "." not in name}, sep=",")
"""


@pytest.mark.parametrize("flag", ["--wrong_flag", "--help"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_wrong_flags_are_told_without_large_packages(script, flag):
    command = [sys.executable, "-c", IMPORTED, f"scripts.{script}", flag]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    code, *modules = ended.stdout.splitlines()[-1].split(",")
    assert (int(code) == 0) == (flag == "--help" and script == "average_checkpoints"), ended.stderr
    assert "Traceback" not in ended.stderr
    assert LARGE.isdisjoint(modules)


# A package that is being imported for long, and makes another error of Ctrl-C, as those in C++ do.
HANGS = """
import pathlib, time
pathlib.Path("it_is_imported").touch()
try:
    time.sleep(60)
except BaseException:
    raise ImportError("another error") from None
"""
AVERAGE = ["checkpoints", "--lawa=window=2", "--out=average.pt"]
AT = [(f"scripts.{script}", "absl", []) for script in SCRIPTS if script != "average_checkpoints"]
AT += [
    ("scripts.report", "pandas", []),
    ("scripts.score", "pandas", ["--logs=checkpoints"]),
    ("scripts.evidence_page", "pandas", []),
    ("scripts.published.algoperf_v05", "pandas", ["--logs=checkpoints"]),
    ("scripts.calibrate", "pandas", []),
    ("scripts.evidence", "pandas", []),
    ("scripts.average_checkpoints", "torch", AVERAGE),
    ("weight_averaging", "torch", ["average", *AVERAGE]),
    ("weight_averaging", "argparse", ["average", *AVERAGE]),
    (
        "scripts.run",
        "torch",
        ["--submission_path=mine.py", "--workload=mini_criteo1tb", "--tuning_ruleset=self", "--experiment_name=mine"],
    ),
]


TERMINATED = [
    AT[-1],
    *(at for at in AT if at[1] in ("pandas", "torch") and at[0] in ("scripts.report", "weight_averaging")),
]


@pytest.mark.parametrize(
    ("module", "package", "rest", "number"),
    [*((*at, signal.SIGINT) for at in AT), *((*at, signal.SIGTERM) for at in TERMINATED)],
)
def test_a_signal_during_an_import_is_one_line(module, package, rest, number, tmp_path):
    (tmp_path / f"{package}.py").write_text(HANGS)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "mine.py").touch()
    process = subprocess.Popen(
        [sys.executable, "-m", module, *rest], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )  # fmt: skip
    while not (tmp_path / "it_is_imported").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (
        128 + number,
        "\nstopped: nothing was begun, and the same command starts anew\n",
    )


def test_what_ignores_ctrl_c_or_has_its_own_way_goes_on_so():
    for before in (signal.SIG_IGN, lambda number, frame: None):
        own = signal.signal(signal.SIGINT, before)
        try:
            with interrupts.importing():
                assert signal.getsignal(signal.SIGINT) is before
            assert signal.getsignal(signal.SIGINT) is before
        finally:
            signal.signal(signal.SIGINT, own)


@pytest.mark.parametrize(
    ("work", "status", "said"),
    [
        ("for line in range(100_000): print(line)", 141, ""),
        ("raise BrokenPipeError('of a worker')", 1, "BrokenPipeError: of a worker"),
    ],
)
def test_a_reader_who_has_seen_enough_ends_a_script_in_silence(work, status, said):
    code = f"from scripts.start import start\ndef run():\n    {work}\nstart(run)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    if not said:
        assert process.stdout.readline() == b"0\n"
        process.stdout.close()
    errors = process.stderr.read().decode()
    assert process.wait() == status
    assert errors.strip().splitlines()[-1:] == ([said] if said else [])


HALF_MADE = """
from weight_averaging import interrupts

class Half:
    def __del__(self):
        raise AttributeError("no _writing yet")

def work():
    half = Half()
    raise KeyboardInterrupt

try:
    work()
except KeyboardInterrupt as end:
    status = interrupts.status_of(end)
raise SystemExit(status)
"""


def test_what_was_interrupted_half_way_says_nothing_when_it_is_dropped():
    done = subprocess.run([sys.executable, "-c", HALF_MADE], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (130, "")

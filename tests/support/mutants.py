"""Mutation testing: small faults put into the library, and whether the tests of that room notice.

    python -m tests.support.mutants --rooms averages,torch --count 60 --seed 1
    python -m tests.support.mutants --rooms convert.py --tests tests/weight_averaging/jax/test_jax_checkpoints.py

A room is a folder of the library or a module on top of it, and `.` all of those. The first run notes which test calls
which function. A fault then meets the tests that call the function, the quickest first, and those that start processes,
whose calls nobody sees. All of it happens in a copy of the tree. The big packages are imported once, and every fault
has a fork. Notes and results go on where they ended.
"""

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import hypothesis
import pytest

from tests.support.faults import faults, with_fault

ROOT = Path(__file__).parents[2]
PARTS = "weight_averaging", "tests", "submissions", "miniperf", "scripts", "docs"  # of the tree, that tests read
BIG = "torch.distributed.checkpoint", "torch._dynamo", "jax.numpy", "hypothesis.stateful", "optax", "flax"
NOTE = Path("note.json")  # what a plugin leaves for the process that forked


class Watch:
    """Notes for every test of a run its seconds, and the library's functions that it calls."""

    def __init__(self) -> None:
        self.tests: dict[str, dict] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        called: set[str] = set()
        here = os.getcwd() + os.sep

        def trace(frame, event, argument):
            code = frame.f_code
            if code.co_filename.startswith(here + "weight_averaging"):
                called.add(f"{code.co_filename.removeprefix(here)}::{code.co_qualname}")
            elif code.co_qualname in ("Popen.__init__", "BaseProcess.start"):
                called.add("processes")

        began = time.monotonic()
        threading.settrace(trace)
        sys.settrace(trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]
            self.tests[item.nodeid] = {"seconds": round(time.monotonic() - began, 3), "calls": sorted(called)}
            NOTE.write_text(json.dumps(self.tests))


class Choice:
    """Runs tests in the order they are given in, with their seconds. One that hangs ends the process."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds

    def pytest_collection_modifyitems(self, items):
        places = {test: place for place, test in enumerate(self.seconds)}
        items[:] = sorted((item for item in items if item.nodeid in places), key=lambda item: places[item.nodeid])

    def pytest_runtest_logstart(self, nodeid):
        NOTE.write_text(json.dumps(nodeid))
        allowed = 20 + 8 * self.seconds[nodeid]
        signal.setitimer(signal.ITIMER_PROF, allowed)  # of the processor: others may be busy on it too
        signal.alarm(int(10 * allowed))


def forked(folder: Path, files: list[str], plugin: Watch | Choice) -> tuple[int, object]:
    """Run pytest in a fork. Its exit status, and what the plugin left."""
    (folder / NOTE).unlink(missing_ok=True)
    if (process := os.fork()) == 0:
        os.setpgrp()
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])  # of processes
        if isinstance(plugin, Choice):  # what is compiled of one fault must not be met by the next
            sys.dont_write_bytecode, os.environ["PYTHONDONTWRITEBYTECODE"] = True, "1"
        for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
            del sys.modules[name]
        for stream in (1, 2):
            os.dup2(os.open("output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *files], [plugin])
        sys.stdout.flush()
        os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
    return status, json.loads((folder / NOTE).read_text()) if (folder / NOTE).exists() else {}


def files(place: Path) -> list[Path]:
    """The Python files of a folder, or the one that it is; of the package itself those on top."""
    if place.is_file():
        return [place]
    return sorted(place.glob("*.py") if place.name == "weight_averaging" else place.rglob("*.py"))


def watched(folder: Path, places: list[str], notes: Path) -> dict[str, dict]:
    """The tests in some places, with their seconds and calls. A file of tests is run for it when it has changed."""
    known = json.loads(notes.read_text()) if notes.exists() else {}
    tests: dict[str, dict] = {}
    for file in (path for place in places for path in files(folder / place) if path.stem != "__init__"):
        name, digest = str(file.relative_to(folder)), hashlib.sha256(file.read_bytes()).hexdigest()
        if known.get(name, {}).get("digest") != digest:
            status, note = forked(folder, [name], Watch())
            if status not in (0, 5):  # 5: there are none
                sys.exit(f"{name} fails without a fault:\n{(folder / 'output').read_text()[-2000:]}")
            known[name] = {"digest": digest, "tests": note}
            notes.write_text(json.dumps(known))
            print(f"watched {name}", flush=True)
        tests |= known[name]["tests"]
    return tests


def chosen(tests: dict[str, dict], path: str, scope: str) -> dict[str, float]:
    """The tests for a fault in a function, the quickest first, with their seconds; those that start processes last.

    What a line outside of functions makes may be read by any test: those that call something of its module come first.
    """
    if scope.endswith("()"):
        calling = {test for test, note in tests.items() if f"{path}::{scope[:-2]}" in note["calls"]}
    else:
        calling = {test for test, note in tests.items() if any(call.startswith(f"{path}::") for call in note["calls"])}
    starting = {test for test, note in tests.items() if "processes" in note["calls"]}
    reached = calling | starting if scope.endswith("()") else set(tests)
    order = sorted(reached or tests, key=lambda test: (test in starting, test not in calling, tests[test]["seconds"]))
    return {test: tests[test]["seconds"] for test in order}


def tried(folder: Path, path: str, number: int, seconds: dict[str, float]) -> str:
    """What notices fault `number` of a file: the test. Nothing if it survives."""
    file = folder / path
    source, times = file.read_text(), file.stat()
    file.write_text(with_fault(source, number))
    try:
        status, last = forked(folder, sorted({test.split("::")[0] for test in seconds}), Choice(seconds))
    finally:
        file.write_text(source)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    if status in (0, 1):
        return str(last or "an import") if status else ""
    return f"exit {status} in {last}"  # an import that fails; or, if negative, a signal: that of a hang, or a crash


def main() -> None:
    parser = argparse.ArgumentParser(description="Put small faults into the library; see which ones no test notices.")
    parser.add_argument("--rooms", default="averages,torch,jax,offline", help="folders and modules of weight_averaging")
    parser.add_argument("--tests", default="", help="more tests of these rooms, where they are elsewhere: PATH,...")
    parser.add_argument("--count", type=int, default=60, help="faults, drawn from all that these rooms can have")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="instead all faults whose PATH:LINE: TEXT has this, tried anew")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "mutants", help="folder of notes and results")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in BIG:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    hypothesis.settings.register_profile("mutants", derandomize=True, database=None, phases=[hypothesis.Phase.generate])
    hypothesis.settings.load_profile("mutants")
    drawn = []
    for room in arguments.rooms.split(","):
        for file in files(ROOT / "weight_averaging" / room):
            path = str(file.relative_to(ROOT))
            drawn += [(room, path, n, *fault) for n, fault in enumerate(faults(file.read_text()))]
    if arguments.only:
        drawn = [one for one in drawn if arguments.only in f"{one[1]}:{one[3]}: {one[5]}"]
    else:
        drawn = sorted(random.Random(arguments.seed).sample(drawn, min(arguments.count, len(drawn))))
    results = arguments.out / "results.jsonl"
    past = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    by = {(one["path"], one["line"], one["fault"]): one["by"] for one in past}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in PARTS:
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy2(ROOT / "pyproject.toml", folder)
        for place, (room, path, number, line, scope, fault) in enumerate(drawn, 1):
            if (path, line, fault) not in by or arguments.only:
                places = [
                    f"tests/weight_averaging/{room}",
                    f"weight_averaging/{room}",
                    *filter(None, arguments.tests.split(",")),
                ]
                tests = watched(folder, places, arguments.out / "tests.json")
                by[path, line, fault] = tried(folder, path, number, chosen(tests, path, scope))
                with results.open("a") as file:
                    row = {"path": path, "line": line, "fault": fault, "by": by[path, line, fault]}
                    file.write(json.dumps(row) + "\n")
            verdict = by[path, line, fault]
            shown = f"killed by {verdict}" if verdict else "SURVIVED"
            print(f"{place}/{len(drawn)} {path}:{line}: {fault}: {shown}", flush=True)
    for room in arguments.rooms.split(","):
        own = [bool(by[path, line, fault]) for of, path, _, line, _, fault in drawn if of == room]
        print(f"{room}: {sum(own)} of {len(own)}" + (f", {sum(own) / len(own):.0%}" if own else ""))


if __name__ == "__main__":
    main()

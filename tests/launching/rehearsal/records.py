"""Records of rehearsed runs, as they should be and with faults."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from launching.rehearsal import averages, checks, data, drive
from launching.rehearsal.record import RESTORED, SEEN, TRAINED, UPDATED, Record
from weight_averaging.averages import EMA, LAWA

UPDATES, KILLED_AFTER = 6, 4
STAND_IN = f"--harness_path={Path(__file__).parents[2] / 'support' / 'stand_in_harness'}"
AVERAGES = {
    "lawa": ({"averaging_interval": 1, "averaging_window": 3}, LAWA(interval=1, window=3)),
    "ema": ({"averaging_interval": 2, "averaging_decay": 0.6}, EMA(interval=2, decay=0.6)),
}


def promise(average, on_top=False):
    recipe = SimpleNamespace(averages=SimpleNamespace(describe=lambda *_: average), point=None, on_top=on_top)
    return averages.promise_of(SimpleNamespace(recipe=recipe), None, 300)


def recorded(folder, average=AVERAGES["lawa"][1], seen=None, trained=None, restored=None, lost=(), on_top=False):
    """The record of a run that does what it promises, but for what is given by step."""
    folder.mkdir(exist_ok=True)
    record = Record(folder, 1)
    promised = promise(average, on_top) if average else None
    record.event("started")
    weights = {t: np.random.RandomState(t).randn(7).astype(np.float32) for t in range(UPDATES + 1)}
    record.event("initialised", promise=promised, averaging_hook=True)
    record.keep(UPDATED, 0, [weights[0]])
    for step in range(1, UPDATES + 1):
        if step == KILLED_AFTER + 1:
            record.part = 2
            record.event("started")
        record.event("batch", step - 1, seconds=0.1)
        record.keep(TRAINED, step, [(trained or {}).get(step, weights[step - 1])])
        record.keep(UPDATED, step, [weights[step]])
        record.event("updated", step, seconds=0.2)
        due = averages.expected(averages.Promise(**promised), weights, step) if promised else None
        record.keep(SEEN, step, [(seen or {}).get(step, weights[step] if due is None else due)])
        if step not in lost:
            record.event("evaluated", step, seconds=0.3)
        record.event("saved", step, seconds=0.4)
    record.event("ended", UPDATES)
    kept = record.weights(SEEN)[KILLED_AFTER]
    record.keep(RESTORED, KILLED_AFTER, [kept if restored is None else restored])
    return record, weights


def failed(record, codes=(-9, 0)):
    return {c.name: c.says for c in checks.checks(record, UPDATES, KILLED_AFTER, codes) if c.passed is False}


def result(**changes):
    cell = drive.Cell(
        workload="ogbg", framework="pytorch", submission="lawa", submission_path="a/b.py", search_space="s.json", gpus=0
    )
    values = {"average": True, "raw weights back": True, "checkpoint": True, **changes.pop("checks", {})}
    times = ("first_batch", "first_update", "update", "evaluation", "checkpoint", "processor", "host_gib")
    measured = dict.fromkeys(times, 1.0)
    return {
        "cell": vars(cell) | changes.pop("cell", {}), "workload": "ogbg", "batch": 512, "official_batch": 512,
        "seconds": 9.0, "said": "",
        "checks": [{"name": name, "passed": passed, "says": f"<{name}>"} for name, passed in values.items()],
        "measured": measured | {"device_gib": None} | changes,
    }  # fmt: skip


def prepare(root, name="criteo1tb"):
    return data.prepare(root, name, sys.executable, {**os.environ, "PYTHONPATH": os.getcwd()})

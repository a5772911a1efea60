"""Make the runs of the evidence, each with many averages tracked along it (docs/results/rules.md, second part).

    python -m scripts.evidence --part=A --out=runs/evidence
    python -m scripts.evidence --part=B --workloads=mini_wmt,mini_ogbg --out=runs/evidence
    python -m scripts.evidence --part=A --variants=nadamw --seeds=1 --list

The plan (comparisons/evidence/plan.yaml) says which runs there are. They come seed by seed, workload by workload, so
that whatever is done is balanced. Where a learning rate is to be found first, the search comes in the place of the
first run that needs it. It has seed 0, the rates of the plan and on from there, until the best final metric is inside.

A run trains once. At its evaluations the averages have their turn after the raw weights. They are in memory and in the
checkpoints; no snapshots are written. Afterwards <out>/<part>/<workload>/<variant>/seed_K.csv has all evaluations, and
seed_K.json what the run was made with.

Stop it at any moment: the same command skips what is finished and goes on from the last checkpoint of the others,
bit for bit. Several such commands may share a folder: a run that another process is at is left to it.
Tables and figures: python -m scripts.evidence_page --help.
"""

import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from absl import logging as absl_logging

from miniperf import workloads
from scripts.start import start
from weight_averaging.errors import UsageError
from weight_averaging.interrupts import importing
from weight_averaging.words import counted

if TYPE_CHECKING:
    from launching.evidence import plan

FLAGS = flags.FLAGS

flags.DEFINE_string("plan", "comparisons/evidence/plan.yaml", "File with the plan of the runs (YAML).")
flags.DEFINE_list("part", ["A"], "Parts of the plan to run, in this order, with commas between.")
flags.DEFINE_string("out", "runs/evidence", "Folder into which the results are written.")
flags.DEFINE_list("workloads", None, "Names of workloads, with commas between; default: those of the plan.")
flags.DEFINE_list("variants", None, "Names of runs of these parts, with commas between; default: all.")
flags.DEFINE_integer("seeds", None, "Number of seeds, the first ones; default: those of the plan.", lower_bound=1)
flags.DEFINE_integer("jobs", 1, "Number of processes, each with one thread.", lower_bound=1)
flags.DEFINE_boolean("list", False, "Say what is finished and what comes next. Nothing is run.")

WAIT_SECONDS = 10


def run() -> None:
    with importing():  # here, since a wrong flag is told without torch and pandas
        from launching.evidence import plan
    parts = plan.load(Path(FLAGS.plan))
    if unknown := [name for name in FLAGS.part if name not in parts]:
        raise UsageError(f"--part={','.join(unknown)} is not in {FLAGS.plan}; it has {', '.join(parts)}")
    if unknown := [name for name in FLAGS.workloads or [] if name not in workloads.WORKLOADS]:
        raise UsageError(
            f"--workloads={','.join(unknown)} is no miniature; choose from {', '.join(workloads.WORKLOADS)}"
        )
    known = {one.name for part in FLAGS.part for one in parts[part]}
    if unknown := [name for name in FLAGS.variants or [] if name not in known]:
        raise UsageError(
            f"--variants={','.join(unknown)} is in none of these parts; they have {', '.join(sorted(known))}"
        )
    planned = {name for part in FLAGS.part for one in parts[part] for name in one.names}
    if left_out := [name for name in FLAGS.workloads or [] if name not in planned]:
        raise UsageError(
            f"--workloads={','.join(left_out)} is not run in part {','.join(FLAGS.part)}; choose from "
            f"{', '.join(sorted(planned))}"
        )
    logging.getLogger("weight_averaging").setLevel(logging.WARNING)
    absl_logging.set_verbosity(absl_logging.WARNING)
    command = [sys.executable, "-m", "scripts.evidence", *sys.argv[1:], "--jobs=1"]
    others = [] if FLAGS.list else [subprocess.Popen(command) for _ in range(1, FLAGS.jobs)]
    try:
        for part in FLAGS.part:
            if chosen := [one for one in parts[part] if one.name in (FLAGS.variants or known)]:
                _part(chosen, Path(FLAGS.out))
        for other in others:
            other.wait()
    except BaseException:
        for other in others:
            other.terminate()
        raise


def _part(variants: "list[plan.Variant]", out: Path) -> None:
    from launching.evidence import plan, runs

    while waiting := list(plan.todo(variants, out, FLAGS.workloads, FLAGS.seeds)):
        if FLAGS.list:
            print(_state(variants, out), *(f"  next: {one.name}" for one in waiting), sep="\n")
            return
        for one in waiting:
            with runs.claimed(one, out) as mine:
                if mine:
                    print(f"{time.strftime('%H:%M:%S')} {one.name}: begins", flush=True)
                    runs.make(one, out)
                    print(f"{time.strftime('%H:%M:%S')} {one.name}: {_outcome(one.path(out))}", flush=True)
                    break
        else:
            time.sleep(WAIT_SECONDS)  # others are at all of them
            continue
        print(_state(variants, out), flush=True)
    print(_state(variants, out), flush=True)


def _outcome(path: Path) -> str:
    from launching.evidence import records

    facts = records.about(path)
    training, evaluations = facts["submission_seconds"], facts["evaluation_seconds"]
    return f"{records.final(path):.6g}, {training:.0f} s of training, {evaluations:.0f} s of evaluations"


def _state(variants: "list[plan.Variant]", out: Path) -> str:
    """How much is done, and how long the rest may take a single process: by what such runs have taken so far."""
    from launching.evidence import plan, records

    everything = plan.count(variants, out, FLAGS.workloads, FLAGS.seeds)
    done = [one for one in everything if one.finished(out)]
    taken: dict[tuple[str, str], list[float]] = {}
    for one in done:
        facts = records.about(one.path(out))
        spent = facts["submission_seconds"] + facts["evaluation_seconds"]
        taken.setdefault((one.workload, one.variant.name), []).append(spent)
    means = {key: sum(values) / len(values) for key, values in taken.items()}
    typical = sum(means.values()) / len(means) if means else float("nan")
    left = sum(means.get((one.workload, one.variant.name), typical) for one in everything if not one.finished(out))
    hours = f"about {left / 3600:.1f} h left for one process" if means else "no estimate yet"
    return f"part {variants[0].part}: {len(done)} of {counted(len(everything), 'run')}, {hours if left else 'all done'}"


if __name__ == "__main__":
    start(run, "the same command goes on: finished runs are not repeated, others resume")

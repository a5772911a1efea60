"""Who reached the validation target first: a table in the terminal, figures, and a page to explore.

    python -m scripts.report --runs=runs/demo

Reads every run below --runs (folders or .tar.xz archives), prints steps and time to target per workload and submission
with the ratio to the baseline, and writes into --out: table.md, learning_curves and speedup as PNG and PDF, and
report.html, which opens in any browser without a network.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from analysis import figures, logs, page, speedup, style, tables, targets, to_target
from analysis.errors import UsageError

FLAGS = flags.FLAGS

flags.DEFINE_list("runs", ["runs"], "Folders or archives with runs, at any depth, with commas between.")
flags.DEFINE_string("baseline", "nadamw", "The submission that the others are compared with.")
flags.DEFINE_list("submissions", None, "Only these; default: all.")
flags.DEFINE_enum("version", None, [*targets.versions(), targets.OWN], "Benchmark version; default: guessed.")
flags.DEFINE_enum("x", "steps", ["steps", "seconds"], "Horizontal axis of the figures.")
flags.DEFINE_string("out", None, "Folder for what is written; default: <runs>/report.")


def run() -> None:
    out = Path(FLAGS.out) if FLAGS.out else Path(FLAGS.runs[0]) / "report"
    read = logs.read(FLAGS.runs).only(FLAGS.submissions)
    measured = targets.resolve(read, FLAGS.version)
    tables.check_baseline(read.runs["submission"], FLAGS.baseline)
    trials = to_target.trials(read, measured)
    best = to_target.studies(trials)
    text = tables.format_by_submission(tables.by_submission(best, FLAGS.baseline), FLAGS.baseline)
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(text + "\n")
    style.save(figures.learning_curves(read, measured, best, FLAGS.baseline, FLAGS.x), out / "learning_curves")
    others = sorted(set(best["submission"]) - {FLAGS.baseline})
    ratios = {name: speedup.compare(best, name, FLAGS.baseline, "seconds") for name in others}
    if ratios:
        by_steps = {name: speedup.compare(best, name, FLAGS.baseline, FLAGS.x) for name in others}
        style.save(figures.speedups(by_steps, FLAGS.baseline, FLAGS.x), out / "speedup")
    notes = logs.summary_of_skipped(read)
    if (line := to_target.unequal(trials)) is not None:
        notes.append(line)
    command = " ".join(["python -m scripts.report", *sys.argv[1:]])
    page.write(out / "report.html", read, measured, trials, best, ratios, FLAGS.baseline, FLAGS.x, command, notes)
    for line in notes:
        print(line, file=sys.stderr)
    print(text)
    names = "table.md, learning_curves.png, speedup.png (and .pdf), report.html"
    print(f"\n{len(read.runs)} runs. In {out}: {names}")


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    try:
        run()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    app.run(main)

"""Who reached the validation target first: a table in the terminal and learning curves as a picture.

    python -m scripts.report --runs=runs/demo

Reads every run below --runs, prints steps and time to target per workload and submission with the ratio to the
baseline, and writes table.md and learning_curves.png into --out (default: <runs>/report).
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from analysis import figures, logs, targets

FLAGS = flags.FLAGS

flags.DEFINE_string("runs", "runs", "Folder with runs, at any depth.")
flags.DEFINE_string("baseline", "nadamw", "The submission that the others are compared with.")
flags.DEFINE_string("out", None, "Folder for the table and the picture; default: <runs>/report.")


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    out = Path(FLAGS.out) if FLAGS.out else Path(FLAGS.runs) / "report"
    try:
        runs, skipped = logs.read_runs(FLAGS.runs)
        result = targets.table(runs, FLAGS.baseline)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    for line in skipped:
        print(f"skipped {line}", file=sys.stderr)
    text = targets.format_table(result, FLAGS.baseline)
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(text + "\n")
    figures.learning_curves(runs, FLAGS.baseline, out / "learning_curves.png")
    print(text)
    print(f"\n{len(runs)} runs. Table: {out / 'table.md'}. Learning curves: {out / 'learning_curves.png'}")


if __name__ == "__main__":
    app.run(main)

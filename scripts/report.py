"""Who reached the validation target first: a table in the terminal, figures, and a page to explore.

    python -m scripts.report --runs=runs/demo

Reads every run below --runs (folders or .tar.xz archives), prints steps and time to target per workload and submission
with the ratio to the baseline, and writes into --out: table.md, learning_curves and speedup as PNG and PDF, and
report.html, which opens in any browser without a network. With --study, a file of studies/, it draws that experiment's
figures too, each point of a grid as a submission of its own.
"""

import sys
from pathlib import Path

from absl import flags

from analysis import figures, lead, logs, page, speedup, studies, study_figures, style, tables, targets, to_target
from analysis.errors import UsageError
from scripts.start import start

FLAGS = flags.FLAGS

flags.DEFINE_list("runs", ["runs"], "Folders or archives with runs, at any depth, with commas between.")
flags.DEFINE_string("study", None, "YAML file of the experiment whose runs these are.")
flags.DEFINE_string("baseline", "nadamw", "The submission that the others are compared with.")
flags.DEFINE_list("submissions", None, "Only these; default: all.")
flags.DEFINE_enum("version", None, [*targets.versions(), targets.OWN], "Benchmark version; default: guessed.")
flags.DEFINE_enum("x", "steps", ["steps", "seconds"], "Horizontal axis of the figures.")
flags.DEFINE_string("out", None, "Folder for what is written; default: <runs>/report.")


def run() -> None:
    out = Path(FLAGS.out) if FLAGS.out else Path(FLAGS.runs[0]) / "report"
    read = logs.read(FLAGS.runs).only(FLAGS.submissions)
    baseline = FLAGS.baseline
    if FLAGS.study is not None:
        study = studies.load(FLAGS.study)
        read = study_figures.select(read, study)
        baseline = study_figures.baseline_arm(study, read)
    measured = targets.resolve(read, FLAGS.version)
    tables.check_baseline(read.runs["submission"], baseline)
    trials = to_target.trials(read, measured)
    best = to_target.studies(trials)
    text = tables.format_by_submission(tables.by_submission(best, baseline), baseline)
    others = sorted(set(best["submission"]) - {baseline})
    by_x = {name: speedup.compare(best, name, baseline, FLAGS.x) for name in others}
    if others:
        over_all = tables.format_speedups(by_x, baseline, FLAGS.x)
        leads = lead.format_table(lead.table(read, measured, baseline), baseline)
        text += f"\n\nOver all workloads, misses counted as censored (docs/analysis.md):\n\n{over_all}"
        text += f"\n\nUpdates to what {baseline} reaches by a share of its training, over {baseline}'s own:\n\n{leads}"
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(text + "\n")
    style.save(figures.learning_curves(read, measured, best, baseline, FLAGS.x), out / "learning_curves")
    ratios = {name: speedup.compare(best, name, baseline, "seconds") for name in others}
    if others:
        style.save(figures.speedups(by_x, baseline, FLAGS.x), out / "speedup")
    drawn = study_figures.draw(study, read, measured, out) if FLAGS.study is not None else []
    notes = logs.summary_of_skipped(read)
    if (line := to_target.unequal(trials)) is not None:
        notes.append(line)
    command = " ".join(["python -m scripts.report", *sys.argv[1:]])
    page.write(out / "report.html", read, measured, trials, best, ratios, baseline, FLAGS.x, command, notes)
    for line in notes:
        print(line, file=sys.stderr)
    print(text)
    names = "table.md, learning_curves.png, speedup.png (and .pdf), report.html"
    names += "".join(f", {path.name}" for path in drawn if path.suffix != ".pdf")
    print(f"\n{len(read.runs)} runs. In {out}: {names}")


if __name__ == "__main__":
    start(run, UsageError)

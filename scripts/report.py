"""Who reached the validation target first: a table in the terminal, figures, and a page to explore.

    python -m scripts.report --runs=runs/demo
    python -m scripts.report --runs=algoperf_a100_self_tuning.tar.xz

Reads every run below --runs (folders or .tar.xz archives). Prints ranks, and the steps and time to target of each
workload and submission with the ratio to the baseline. Writes table.md into --out, and learning_curves, speedup and
performance_profiles as PNG and PDF. The page report.html there opens in any browser without a network. With
--comparison, a file of comparisons/, it draws that experiment's figures too. Each point of a grid is then a submission
of its own.
"""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from analysis.reading import files
from analysis.targets import versions
from scripts.start import start
from weight_averaging.interrupts import importing
from weight_averaging.words import counted

if TYPE_CHECKING:
    from analysis.measures.results import Results

FLAGS = flags.FLAGS

flags.DEFINE_list("runs", ["runs"], "Folders or .tar.xz archives with runs at any depth, with commas between.")
flags.DEFINE_string("comparison", None, "File of the experiment whose runs these are (YAML).")
flags.DEFINE_string(
    "baseline", None, "Name of the submission to compare with; default: baseline or nadamw, else the best."
)
flags.DEFINE_list("submissions", None, "Names of the submissions to report, with commas between; default: all.")
flags.DEFINE_enum("framework", None, ["pytorch", "jax"], "Framework of the runs to report; default: both.")
flags.DEFINE_enum(
    "version",
    None,
    [*versions.names(), versions.OWN],
    "Version of the benchmark; default: guessed from the workloads and meta data.",
)
flags.DEFINE_enum(
    "x", None, ["steps", "seconds"], "Unit along figures; default: seconds for official runs, else steps."
)
flags.DEFINE_string(
    "out", None, "Folder for tables and figures; default: <runs>/report, and for an archive <its name>_report."
)


def run() -> None:
    with importing():  # here, since a wrong flag is told without pandas and matplotlib
        from analysis.comparisons import comparison, draw
        from analysis.figures import learning_curves, ratios, style
        from analysis.measures import crossing, results
        from analysis.reading import logs
        from analysis.report import page
    read = logs.read(FLAGS.runs, FLAGS.framework).only(FLAGS.submissions)
    baseline, asked, median_of = FLAGS.baseline, None, crossing.MEDIAN_OF
    if FLAGS.comparison is not None:
        asked = comparison.load(FLAGS.comparison)
        median_of = asked.median_of
        read = draw.select(read, asked)
        baseline = draw.baseline_arm(asked, read)
    found = results.of(read, FLAGS.version, baseline, FLAGS.x, median_of=median_of)
    out = files.output_folder(FLAGS.out or _beside(Path(FLAGS.runs[0])))
    text = _text(found)
    (out / "table.md").write_text(text + "\n")
    ranked = list(found.scores.index)
    curves = learning_curves.learning_curves(
        found.measured.curves, found.targets, found.compared, found.baseline, found.unit, ranked
    )
    style.save(curves, out / "learning_curves")
    style.save(
        learning_curves.performance_profiles(found.profile, found.scores, found.baseline, found.unit),
        out / "performance_profiles",
    )
    names = ["table.md", "learning_curves.png", "performance_profiles.png"]
    if found.ratios:
        style.save(ratios.speedups(found.ratios, found.baseline, found.unit), out / "speedup")
        names.append("speedup.png")
    drawn = draw.draw(asked, found.measured, out) if asked is not None else []
    page.write(out / "report.html", found, shlex.join(["python", *sys.orig_argv[1:]]))
    for line in found.notes:
        print(line, file=sys.stderr)
    print(text)
    names += [path.name for path in drawn if path.suffix != ".pdf"]
    print(
        f"\n{counted(len(found.logs.runs), 'run')}. In {out}: {', '.join(names)} (pictures also as .pdf), report.html"
    )
    print(f"next: open {out / 'report.html'} in a browser")


def _beside(runs: Path) -> Path:
    return Path(f"{runs.name.split('.tar')[0]}_report") if files.is_archive(runs) else runs / "report"


def _text(found: "Results") -> str:
    from analysis.measures import results
    from analysis.report import tables
    from analysis.text import markdown

    parts = [f"Scores by {results.title(found)}:", markdown(tables.ranking(found))]
    by_submission = tables.by_submission(found.compared, found.baseline)
    parts += ["By workload:", tables.format_by_submission(by_submission, found.baseline)]
    if found.ratios:
        ratios = tables.format_speedups(found.ratios, found.baseline, {"seconds": "time"}.get(found.unit, found.unit))
        parts += ["Over all workloads, misses counted as censored (docs/analysis.md):", ratios]
    if found.leads is not None:
        what = {"seconds": "Seconds", "steps": "Updates"}[found.unit]
        parts += [
            f"{what} to what {found.baseline} reaches by a share of its training, over {found.baseline}'s own:",
            tables.format_leads(found.leads, found.baseline),
        ]
    return "\n\n".join(parts)


if __name__ == "__main__":
    start(run)

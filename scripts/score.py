"""The AlgoPerf score of submissions, from their run logs.

    python -m scripts.score --logs=algoperf_v05_external.tar.xz --out=scores
    python -m scripts.score --logs=algoperf_a100_self_tuning.tar.xz --what_if='nadamw_baselinev05:steps*0.82'

Reads folders or tar archives of logs in the official form. Prints rank and score, the median times to target, and the
speed-up over the baseline. The folder --out gets them as scores.md and as one CSV file each. It also gets the
performance profiles as a picture. Without --version the benchmark version is guessed from the workloads and their meta
data.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from analysis.reading import files
from analysis.targets import versions
from scripts.start import start
from weight_averaging.interrupts import importing
from weight_averaging.words import counted

if TYPE_CHECKING:
    import pandas as pd

    from analysis.measures.results import Results

FLAGS = flags.FLAGS

flags.DEFINE_list("logs", None, "Folders or .tar.xz archives of run logs, with commas between.", required=True)
flags.DEFINE_enum(
    "version",
    None,
    [*versions.names(), versions.OWN],
    "Version of the benchmark; default: guessed from the workloads and meta data.",
)
flags.DEFINE_string(
    "baseline", None, "Name of the submission to compare with; default: baseline or nadamw, else the best."
)
flags.DEFINE_list("submissions", None, "Names of the submissions to score, with commas between; default: all.")
flags.DEFINE_multi_string(
    "what_if", [], "Add a hypothetical entry, NAME:steps*RATIO (see analysis/measures/what_if.py)."
)
flags.DEFINE_integer(
    "gpus", None, "Number of GPUs in the machine, to compute GPU-hours; default: that of the logs.", lower_bound=1
)
flags.DEFINE_string("out", None, "Folder for the text, the CSV files and the picture; default: nothing is written.")


def run() -> None:
    with importing():  # here, since a wrong flag is told without pandas
        from analysis.measures import results, score, to_target, what_if
        from analysis.reading import logs
        from analysis.report import tables
        from analysis.text import markdown
    imagined = [what_if.parse(text) for text in FLAGS.what_if]
    read = logs.read(FLAGS.logs).only(FLAGS.submissions)
    found = results.of(read, FLAGS.version, FLAGS.baseline, "seconds", imagined, FLAGS.gpus)
    picked = to_target.studies(found.trials, "fastest")
    fastest, _ = score.score(to_target.submissions(picked), found.targets)
    by_fastest = [f"{fastest[name]:.4f}" for name in found.scores.index]
    shown = tables.ranking(found).assign(**{"score, fastest trial": by_fastest})
    text = [f"## Scores by {results.title(found)}", markdown(shown)]
    text += ["## Median seconds to target", tables.format_times(found.times, list(found.scores.index))]
    if found.ratios:
        ratios = tables.format_speedups(found.ratios, found.baseline)
        text += [f"## Time to target, relative to {found.baseline}", ratios]
    text += ["## Notes", _notes(found, picked)]
    print("\n\n".join(text))
    if FLAGS.out is not None:
        _write(files.output_folder(FLAGS.out), found, fastest, "\n\n".join(text))


def _write(out: Path, found: "Results", fastest: "pd.Series", text: str) -> None:
    import pandas as pd

    from analysis.measures import speedup, to_target

    (out / "scores.md").write_text(text + "\n")
    by_rule = pd.DataFrame({"score": found.scores, "score_fastest_trial": fastest})
    by_rule.join(found.hours).sort_values("score", ascending=False).to_csv(out / "scores.csv", index_label="submission")
    found.times.T.to_csv(out / "seconds_to_target.csv")
    to_target.submissions(found.best, "steps").T.to_csv(out / "steps_to_target.csv")
    found.trials.drop(columns=["hparams", "meta", "flags"]).to_csv(out / "trials.csv", index=False)
    if found.ratios:
        speedup.rows(found.ratios).to_csv(out / "speedups.csv", index=False)
    found.logs.skipped.to_csv(out / "skipped.csv", index=False)
    # Here, since matplotlib takes as long to import as an archive of 450 runs to read.
    from analysis.figures import learning_curves, style

    profiles = learning_curves.performance_profiles(found.profile, found.scores, found.baseline, found.unit)
    style.save(profiles, out / "performance_profiles")


def _notes(found: "Results", fastest: "pd.DataFrame") -> str:
    from analysis.measures import to_target

    lines = [
        f"{counted(len(found.logs.runs), 'run')}, {counted(len(found.logs.evaluations), 'evaluation')}",
        *found.notes,
    ]
    differ = to_target.difference(found.trials, found.best, fastest)
    compared, ties = differ.attrs["compared"], differ.attrs["ties"]
    if len(differ):
        lines.append(
            f"in {len(differ)} of {compared} studies that reached the target, the trial with the fewest evaluations "
            f"(the official code's choice) is not the fastest, by up to {100 * differ['excess'].max():.1f} %"
        )
    if ties:
        lines.append(
            f"in {ties} of {compared} several trials have the fewest evaluations, up to "
            f"{100 * differ.attrs['spread']:.1f} % apart: the official code takes the one listed first, "
            "here the fastest counts"
        )
    return "\n".join(f"- {line}." for line in lines)


if __name__ == "__main__":
    start(run)

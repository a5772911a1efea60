"""The AlgoPerf score of submissions, from their run logs.

    python -m scripts.score --logs=algoperf_v05_external.tar.xz --out=scores

Reads folders or tar archives of logs in the official form, and prints the score, the median times to target, and the
speed-up over the baseline. --out gets them as scores.md, as one CSV file each, and the performance profiles as a
picture. Without --version the benchmark version is guessed from the workloads.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from absl import flags

from analysis import figures, logs, score, speedup, style, tables, targets, to_target
from analysis.errors import UsageError
from scripts.start import start

FLAGS = flags.FLAGS

flags.DEFINE_list("logs", None, "Folders or .tar.xz archives of run logs, with commas between.", required=True)
flags.DEFINE_enum("version", None, [*targets.versions(), targets.OWN], "Benchmark version; default: guessed.")
flags.DEFINE_string("baseline", None, "The submission to compare with; default: baseline or nadamw, else none.")
flags.DEFINE_list("submissions", None, "Only these; default: all.")
flags.DEFINE_integer("gpus", None, "GPUs of the machine, for GPU-hours; default: the version's.", lower_bound=1)
flags.DEFINE_string("out", None, "Folder for Markdown, CSV files and the picture; default: none written.")


def choose_baseline(submissions: pd.Series) -> str | None:
    """--baseline, or the name that is there."""
    if FLAGS.baseline is not None:
        tables.check_baseline(submissions, FLAGS.baseline)
        return FLAGS.baseline
    return next((name for name in ("baseline", "nadamw") if (submissions == name).any()), None)


def run() -> None:
    read = logs.read(FLAGS.logs).only(FLAGS.submissions)
    measured = targets.resolve(read, FLAGS.version)
    baseline = choose_baseline(read.runs["submission"])
    trials = to_target.trials(read, measured)
    best = to_target.studies(trials)
    times = to_target.submissions(best)
    scores, profile = score.score(best, measured)
    fastest, _ = score.score(to_target.studies(trials, "fastest"), measured)
    gpus = FLAGS.gpus or measured.attrs["gpus"]
    hours = speedup.gpu_hours(best, measured, gpus)
    base = measured.index[measured["variant_of"].isna() & measured["scored"]]
    shown = pd.DataFrame(
        {
            "submission": scores.index,
            "score": [f"{x:.4f}" for x in scores],
            "score, fastest trial": [f"{fastest[name]:.4f}" for name in scores.index],
            "targets reached": [
                f"{np.isfinite(times.loc[n].reindex(base)).sum()}/{measured.attrs['workloads']}" for n in scores.index
            ],
            f"GPU-hours ({gpus} GPUs)" if gpus > 1 else "hours": [_hours(hours.loc[name]) for name in scores.index],
        }
    )
    version = measured.attrs["version"]
    whose = "the runs' own targets" if version == targets.OWN else f"AlgoPerf {version}"
    text = [f"## Scores by {whose}", tables.markdown(shown)]
    text += ["## Median seconds to target", tables.format_times(times)]
    ratios = {
        name: speedup.compare(best[best["workload"].isin(base)], name, baseline)
        for name in scores.index
        if baseline is not None and name != baseline
    }
    if ratios:
        text += [f"## Time to target, relative to {baseline}", tables.format_speedups(ratios, str(baseline))]
    text += ["## Notes", _notes(read, trials)]
    print("\n\n".join(text))
    if FLAGS.out is not None:
        out = Path(FLAGS.out)
        out.mkdir(parents=True, exist_ok=True)
        (out / "scores.md").write_text("\n\n".join(text) + "\n")
        by_rule = pd.DataFrame({"score": scores, "score_fastest_trial": fastest})
        by_rule.join(hours).sort_values("score", ascending=False).to_csv(out / "scores.csv", index_label="submission")
        times.T.to_csv(out / "seconds_to_target.csv")
        to_target.submissions(best, "steps").T.to_csv(out / "steps_to_target.csv")
        trials.drop(columns=["hparams", "meta", "flags"]).to_csv(out / "trials.csv", index=False)
        if ratios:
            tables.speedup_rows(ratios).to_csv(out / "speedups.csv", index=False)
        read.skipped.to_csv(out / "skipped.csv", index=False)
        style.save(figures.performance_profiles(profile, scores, baseline), out / "performance_profiles")


def _hours(row: pd.Series) -> str:
    """A miss makes the sum a lower bound, and so does a workload that was not run."""
    return f"{'>= ' if row['misses'] or row['missing'] else ''}{row['hours']:.3g}"


def _notes(read: logs.Logs, trials: pd.DataFrame) -> str:
    lines = [
        f"- {len(read.runs)} runs, {len(read.evaluations)} evaluations.",
        *(f"- {line}" for line in logs.summary_of_skipped(read)),
    ]
    differ = to_target.difference(trials)
    compared, ties = differ.attrs["compared"], differ.attrs["ties"]
    if len(differ):
        lines.append(
            f"- In {len(differ)} of {compared} studies that reached the target, the trial with the fewest evaluations "
            f"(the official code's choice) is not the fastest, by up to {100 * differ['excess'].max():.1f} %."
        )
    if ties:
        lines.append(
            f"- In {ties} of {compared} several trials have the fewest evaluations, up to "
            f"{100 * differ.attrs['spread']:.1f} % apart: the official code takes the one listed first, "
            "here the fastest counts."
        )
    if (line := to_target.unequal(trials)) is not None:
        lines.append(f"- {line}; medians are over the studies there are.")
    return "\n".join(lines)


if __name__ == "__main__":
    start(run, UsageError)

"""What the current AlgoPerf leaderboard (4 x A100, self-tuning) says.

Where in training the targets lie, how long an update takes, who is first where, and what fewer steps would score.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures import learning_curves, style
from analysis.measures import results, score, to_target, what_if
from analysis.measures.pace import seconds_per_step
from analysis.measures.results import Results
from analysis.measures.what_if import WhatIf
from analysis.reading import files, logs
from analysis.text import formatted
from weight_averaging.errors import UsageError

TUNED = ("nadamw_baselinev05", "nadamw")
# Updates to target of the paper's NadamW over the step hint of v0.5. Its own, smaller language model stands for
# finewebedu_lm.
PAPER = {"criteo1tb": 0.77, "fastmri": 0.31, "imagenet_vit": 0.80, "librispeech_conformer": 0.89,
         "librispeech_deepspeech": 0.89, "ogbg": 0.36, "wmt": 0.89, "finewebedu_lm": 0.34}  # fmt: skip
# Median seconds to target of a submission in the leaderboard's later report (artifacts/tech_report_v1); its logs are
# not published. The targets that are not here it missed in two of three studies at least.
LATER = ("ademamix_golden", {"fastmri": 1817.18, "finewebedu_lm": 12887.50, "ogbg": 4994.30})
COLOURS = {"jax": style.COLOURS[-1], "pytorch": style.COLOURS[1]}


def runs_of(found: Results) -> pd.DataFrame:
    """`to_target.studies`, with where in training the target and the end lie, and how fast it went.

    It adds the share of the step hint at both, and how far apart evaluations are. It also adds the seconds per update,
    between the first evaluation and the last.
    """
    folders = found.logs.runs["folder"]
    gaps = found.logs.evaluations.groupby("run")["score"].agg(lambda times: times.diff().median())
    hint = found.best["workload"].map(found.targets["step_hint"]).astype(float)
    return found.best.assign(
        place=found.best["steps"] / hint,
        end=found.best["last_steps"] / hint,
        pace=found.best["folder"].map(seconds_per_step(found.logs).set_axis(folders)),
        gap=found.best["folder"].map(gaps.set_axis(folders[gaps.index])),
    )


def first(found: Results, runs: pd.DataFrame) -> pd.DataFrame:
    """Per workload the two fastest submissions, how many reach the target, and what an evaluation's period is."""
    rows = []
    for workload in found.targets.index:
        times = found.times[workload].astype(float).replace(np.inf, np.nan).dropna().sort_values()
        gap = runs.loc[runs["workload"] == workload, "gap"].median()
        one, two = [*times.index[:2], "-", "-"][:2]
        best, second = [*times.iloc[:2], np.nan, np.nan][:2]
        rows.append((workload, len(times), one, best, two, second / best, gap / best))
    columns = ["workload", "reached by", "first", "seconds", "second", "ratio", "evaluation period / first's time"]
    return pd.DataFrame(rows, columns=columns)


def places(runs: pd.DataFrame) -> pd.DataFrame:
    """Median updates to target over the step hint, beside the paper's; inf for a miss."""
    table = runs[runs["submission"].isin(TUNED)].groupby(["workload", "submission"])["place"].median().unstack()
    return table[list(TUNED)].assign(paper=pd.Series(PAPER)).reset_index()


def speed(runs: pd.DataFrame, found: Results) -> pd.DataFrame:
    """Median over submissions of seconds per update and of how far runs that missed the target got, by framework."""
    of_submission = runs.groupby(["workload", "framework", "submission"])["pace"].median()
    pace = of_submission.groupby(["workload", "framework"]).median().unstack()
    end = runs[~runs["reached"]].groupby(["workload", "framework"])["end"].median().unstack()
    table = pace.add_suffix(" s/update").join(end.add_suffix(": a miss ends at"))
    # Whoever takes longer cannot make the step hint's updates before the budget ends.
    table.insert(0, "budget / step hint", found.targets["budget_s"] / found.targets["step_hint"].astype(float))
    return table.reset_index()


def rounded_up(trials: pd.DataFrame, entry: WhatIf, of_runs: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """`trials` with the entry's times moved to the next evaluation of the run that it starts from: a target is reached
    only where someone looks."""
    rows = trials[(trials["submission"] == entry.name) & trials["reached"]]
    later = [
        of_runs[folder]["seconds"].to_numpy()[np.searchsorted(of_runs[folder]["seconds"], seconds - 1e-6)]
        for folder, seconds in zip(rows["folder"], rows["seconds"])
    ]
    return trials.assign(seconds=trials["seconds"].where(~trials.index.isin(rows.index), pd.Series(later, rows.index)))


def imagined(found: Results, ratios: str) -> pd.DataFrame:
    """Scores and ranks of hypothetical entries, of each submission, each alone in the real field.

    Args:
        ratios: the file with the paper's steps to target over NadamW's.
    """
    of_runs = found.measured.curves
    rows = []
    for name in found.scores.index:
        for fewer in ("0.82", f"{ratios}#lawa", f"{ratios}#ema"):
            entry = what_if.parse(f"{name}:steps*{fewer}")
            scaled = what_if.add(found.trials, [entry])
            row = {"entry": entry.name, "score of the real one": found.scores[name]}
            for how, trials in (("score", scaled), ("score, at evaluations", rounded_up(scaled, entry, of_runs))):
                scores, _ = score.score(to_target.submissions(to_target.studies(trials)), found.targets)
                row[how] = scores[entry.name]
                row[how.replace("score", "rank")] = int((scores > scores[entry.name]).sum()) + 1
            rows.append(row)
    return pd.DataFrame(rows)


def imagined_later(found: Results, ratios: str) -> pd.DataFrame:
    """As `imagined`, of the one submission whose medians alone are known: not when its evaluations were."""
    name, seconds = LATER
    rows = []
    for fewer in ("0.82", f"{ratios}#lawa", f"{ratios}#ema"):
        entry = what_if.parse(f"{name}:steps*{fewer}")
        scaled = {w: time * entry.ratios.get(w, entry.otherwise) for w, time in seconds.items()}
        scores = []
        for times in (seconds, scaled):  # each alone in the real field
            row = pd.Series(times, name=entry.name).reindex(found.times.columns).fillna(np.inf)
            scores.append(score.score(pd.concat([found.times, row.to_frame().T]), found.targets)[0])
        real, imaginary = (each[entry.name] for each in scores)
        rank = int((scores[1] > imaginary).sum()) + 1
        rows.append({"entry": entry.name, "score of the real one": real, "score": imaginary, "rank": rank})
    return pd.DataFrame(rows)


def how_far(runs: pd.DataFrame, found: Results) -> Figure:
    """Each submission's median study: where it reached the target, or ended without, as a share of the step hint."""
    workloads = list(found.targets.index)
    figure, (axis,) = style.panels(1, size=(7.5, 4.6))
    for (workload, name), rows in runs.groupby(["workload", "submission"]):
        median = rows["place"].median()
        missed = np.isinf(median) or np.isnan(median)
        x = rows["end"].median() if missed else median
        framework = rows["framework"].iloc[0]
        y = workloads.index(workload) + (-0.17 if framework == "jax" else 0.17)
        label = f"{framework}: {'ended without' if missed else 'target reached'}"
        axis.plot(x, y, "x" if missed else "o", color=COLOURS[framework], alpha=0.75, markersize=5, label=label)
        if name in TUNED:
            marker = {TUNED[0]: "s", TUNED[1]: "D"}[name]
            axis.plot(x, y, marker, color="black", markerfacecolor="none", markersize=9, label=name)
    for workload, place in PAPER.items():
        axis.plot(
            place,
            workloads.index(workload) - 0.38,
            "v",
            color="black",
            markersize=4,
            label="the paper's NadamW: reached",
        )
    axis.axvline(1, color="0.35", linewidth=1, linestyle=(0, (4, 3)))
    axis.set_yticks(range(len(workloads)), workloads)
    axis.set_ylim(len(workloads) - 0.5, -0.6)
    axis.set_xlim(0, 2.5)
    axis.set_xlabel("updates / step hint (lower is better where the target is reached)")
    axis.lines[-1].set_label("the step hint")
    style.legend_below(figure, [axis])
    return figure


def pace(runs: pd.DataFrame, found: Results) -> Figure:
    """Seconds per update of each submission's median study, over what the budget leaves for each of the step hint."""
    workloads = list(found.targets.index)
    allowed = found.targets["budget_s"] / found.targets["step_hint"].astype(float)
    figure, (axis,) = style.panels(1, size=(7.5, 4.2))
    medians = runs.groupby(["workload", "submission", "framework"])["pace"].median()
    for workload, name, framework, seconds in medians.reset_index().itertuples(index=False, name=None):
        y = workloads.index(workload) + (-0.17 if framework == "jax" else 0.17)
        x = seconds / allowed[workload]
        axis.plot(x, y, "o", color=COLOURS[framework], alpha=0.75, markersize=5, label=framework)
        if name in TUNED:
            marker = {TUNED[0]: "s", TUNED[1]: "D"}[name]
            axis.plot(x, y, marker, color="black", markerfacecolor="none", markersize=9, label=name)
    axis.axvline(1, color="0.35", linewidth=1, linestyle=(0, (4, 3)))
    axis.set_yticks(range(len(workloads)), workloads)
    axis.set_ylim(len(workloads) - 0.5, -0.6)
    style.log_ticks(axis)
    axis.set_xlabel("seconds per update / (budget / step hint) (lower is better)")
    axis.lines[-1].set_label("the step hint's updates just fit the budget")
    style.legend_below(figure, [axis])
    return figure


def winners(found: Results) -> Figure:
    """Median time to target over the fastest submission's, with the misses."""
    times = found.times[list(found.targets.index)].astype(float).replace(np.inf, np.nan).loc[found.scores.index]
    ratios = times / times.min()
    figure, (axis,) = style.panels(1, size=(8.6, 5.4))
    axis.grid(False)
    shades = axis.imshow(np.log(ratios.to_numpy()), cmap="Blues_r", vmin=-0.5, vmax=np.log(4), aspect="auto")
    ticks = (1, 1.5, 2, 3, 4)
    bar = figure.colorbar(shades, ax=axis, ticks=np.log(ticks), shrink=0.8, aspect=30)
    bar.ax.set_ylim(0, np.log(4))
    bar.ax.set_yticklabels([f"{tick:g}" for tick in ticks])
    bar.set_label("time to target / the fastest submission's (lower is better)")
    for (y, x), ratio in np.ndenumerate(ratios.to_numpy()):
        if np.isfinite(ratio):
            colour = "white" if ratio < 1.6 else "black"
            weight = "bold" if ratio == 1 else "normal"
            axis.text(x, y, f"{ratio:.2f}", ha="center", va="center", fontsize=8, color=colour, weight=weight)
        else:
            axis.text(x, y, "missed", ha="center", va="center", fontsize=6, color="0.5")
    axis.set_title("Median time to target over the fastest submission's (bold); at the left score and name")
    axis.set_xticks(range(len(ratios.columns)), ratios.columns, rotation=30, ha="right")
    axis.set_yticks(range(len(ratios)), [f"{found.scores[name]:.4f}  {name}" for name in ratios.index])
    return figure


def write(path: str, folder: str, ratios: str) -> None:
    """Read the logs at a path; print the tables, and write them and the figures into a folder.

    Args:
        ratios: as in `imagined`.
    """
    found = results.of(logs.read(path))
    if found.targets.attrs["version"] != "v0.6-a100":
        raise UsageError(f"--logs={path}: runs of {results.title(found)}, not of the A100 leaderboard")
    runs = runs_of(found)
    frameworks = found.best.groupby("submission")["framework"].first()
    scores = pd.DataFrame(
        {
            "submission": found.scores.index,
            "framework": [frameworks[name] for name in found.scores.index],
            "targets reached": [found.reached[name] for name in found.scores.index],
            "score": found.scores.to_numpy(),
        }
    )
    fantasies = pd.concat([imagined(found, ratios), imagined_later(found, ratios)], ignore_index=True)
    parts = {
        "Scores": formatted(scores, score=".4f"),
        "Who is first": formatted(first(found, runs), seconds=".0f"),
        "Where the target lies: updates to target / step hint": formatted(
            places(runs), **dict.fromkeys((*TUNED, "paper"), ".2f")
        ),
        "Time per update": formatted(speed(runs, found)),
        "What if: hypothetical entries, no such run exists": formatted(
            fantasies,
            **{str(name): ".4f" for name in fantasies if str(name).startswith("score")},
            **{str(name): ".0f" for name in fantasies if str(name).startswith("rank")},
        ),
    }
    text = "\n\n".join(f"## {title}\n\n{table}" for title, table in parts.items())
    out = files.output_folder(folder)
    (out / "tables.md").write_text(f"# Tables\n\nMade by `python -m scripts.published.leaderboard_a100`.\n\n{text}\n")
    print(text)
    style.save(how_far(runs, found), out / "how_far", ["png"])
    style.save(pace(runs, found), out / "pace", ["png"])
    style.save(winners(found), out / "winners", ["png"])
    entries = [what_if.parse(f"{TUNED[0]}:steps*{ratios}#{name}") for name in ("lawa", "ema")]
    with_them = results.of(found.logs, imagined=entries)
    profiles = learning_curves.performance_profiles(with_them.profile, with_them.scores, TUNED[0], found.unit)
    style.save(profiles, out / "what_if", ["png"])

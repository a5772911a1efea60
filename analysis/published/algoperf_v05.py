"""What the published AlgoPerf v0.5 logs say: lawa_queue and lawa_ema beside the NadamW baseline."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures import learning_curves, ratios, style
from analysis.measures import crossing, score, speedup, to_target
from analysis.measures.to_target import Measured
from analysis.reading import files, logs
from analysis.targets import resolve
from analysis.text import formatted, markdown

BASELINE, QUEUE, EMA = NAMES = ("baseline", "lawa_queue", "lawa_ema")
# Seconds between evaluations, as the v0.5 workloads define them.
PERIOD = {"criteo1tb": 120, "fastmri": 80, "imagenet_resnet": 510, "imagenet_vit": 420, "librispeech_conformer": 1440,
          "librispeech_deepspeech": 1440, "ogbg": 240, "wmt": 840}  # fmt: skip


def times(best: pd.DataFrame, of_runs: dict[str, pd.DataFrame], targets: pd.DataFrame) -> pd.DataFrame:
    """Median seconds to target, as scored and interpolated, and how often the runs were evaluated."""
    rows = best.assign(
        crossed=[
            crossing.first(
                of_runs[folder]["seconds"].to_numpy(),
                of_runs[folder]["value"].to_numpy(),
                *targets.loc[workload, ["target", "lower"]],
            )
            for folder, workload in zip(best["folder"], best["workload"])
        ],
        between=[of_runs[folder]["seconds"].diff().median() for folder in best["folder"]],
    )
    groups = rows.groupby(["workload", "submission"])
    result = groups[["seconds", "crossed", "between"]].median()
    result["reached"] = groups["reached"].sum().astype(str) + "/" + groups.size().astype(str)
    reference = result.xs(BASELINE, level="submission").reindex(result.index.get_level_values("workload"))
    for column in ("seconds", "crossed"):
        ratio = result[column] / reference[column].to_numpy()
        result[f"{column} / baseline"] = ratio.where(np.isfinite(ratio) & (ratio > 0))
    return result.reset_index()


def ends(trials: pd.DataFrame, targets: pd.DataFrame) -> pd.DataFrame:
    """How far the runs that missed their target went, as a share of the time budget."""
    missed = trials[~trials["reached"]]
    share = missed["last_seconds"] / missed["workload"].map(targets["budget_s"])
    groups = share.groupby([missed["workload"], missed["submission"]])
    table = groups.agg(["size", "min", "median", "max"])
    counts = trials.groupby(["workload", "submission"]).size()
    table.insert(0, "runs", counts)
    return table.reset_index()


def calls(best: pd.DataFrame) -> pd.DataFrame:
    """Seconds per counted step, beside the evaluation period."""
    table = (
        (best["last_seconds"] / best["last_steps"]).groupby([best["workload"], best["submission"]]).median().unstack()
    )
    return table[list(NAMES)].assign(period=pd.Series(PERIOD)).reset_index()


def at_the_end(trials: pd.DataFrame, of_runs: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Where averaging runs broke off: their last metric, and the baseline's with the same hyperparameters then."""
    rows = []
    for name in (QUEUE, EMA):
        for workload in ("criteo1tb", "imagenet_resnet", "librispeech_conformer", "librispeech_deepspeech"):
            pairs = []
            here = trials[(trials["workload"] == workload) & ~trials["reached"]]
            theirs = here[here["submission"] == name].set_index(["study", "trial"])["folder"].to_dict()
            base = trials[(trials["workload"] == workload) & (trials["submission"] == BASELINE)]
            for key, folder in base.set_index(["study", "trial"])["folder"].items():
                # After the first evaluation, of which nothing can be said; both must have values there.
                if key in theirs and len(mine := of_runs[theirs[key]]) > 1 and len(other := of_runs[folder]) > 1:
                    end = mine["seconds"].iloc[-1]
                    value = np.interp(end, other["seconds"], other["value"], left=np.nan, right=np.nan)
                    pairs.append((mine["value"].iloc[-1], value))
            if pairs:
                mine_, other_ = np.nanmedian(np.array(pairs), axis=0)
                rows.append((workload, name, len(pairs), mine_, other_))
    return pd.DataFrame(rows, columns=["workload", "submission", "pairs", "its metric", "baseline's then"])


def same_points(trials: pd.DataFrame, targets: pd.DataFrame) -> pd.DataFrame:
    """Trials as studies of their own, so that a trial is compared with that of the same study and hyperparameters.

    Workloads where both averaging submissions ran to the budget; points at which someone reached the target.
    """
    share = trials["last_seconds"] / trials["workload"].map(targets["budget_s"])
    broke_off = (share < 0.9) & ~trials["reached"] & trials["submission"].isin([QUEUE, EMA])
    whole = set(trials["workload"]) - set(trials.loc[broke_off, "workload"])
    rows = trials[trials["workload"].isin(whole)].assign(study=10 * trials["study"] + trials["trial"])
    useful = rows.groupby(["workload", "trial"])["reached"].transform("any")
    return rows[useful].assign(meta=rows["study"].map(lambda _: {}))


def ends_figure(trials: pd.DataFrame, targets: pd.DataFrame) -> Figure:
    """Every run: where it ended, or reached its target, as a share of the budget."""
    workloads = sorted(trials["workload"].unique())
    figure, (axis,) = style.panels(1, size=(6.4, 4.6))
    looks = style.looks(NAMES, BASELINE)
    for offset, name in zip((-0.27, 0.0, 0.27), NAMES):
        mine = trials[trials["submission"] == name]
        y = mine["workload"].map(workloads.index) + offset + 0.05 * (mine["study"] - 2) * 0.6
        budget = mine["workload"].map(targets["budget_s"])
        colour, line = looks[name]
        for reached, marker in ((True, style.MARKERS[line]), (False, "x" if line == "-" else "+")):
            rows = mine["reached"] == reached
            x = (mine["seconds"].where(mine["reached"], mine["last_seconds"]) / budget)[rows]
            label = f"{name}: {'target reached' if reached else 'ended without'}"
            axis.plot(x, y[rows], marker, color=colour, markersize=4, alpha=0.8, label=label, linestyle="none")
    axis.set_xscale("log")
    axis.set_xticks([0.01, 0.03, 0.1, 0.3, 1.0], ["1 %", "3 %", "10 %", "30 %", "100 %"])
    axis.minorticks_off()
    axis.set_yticks(range(len(workloads)), workloads)
    axis.invert_yaxis()
    axis.set_xlabel("share of the time budget (lower is better where the target is reached)")
    style.legend_below(figure, [axis])
    return figure


def what_if(best: pd.DataFrame, targets: pd.DataFrame) -> pd.Series:
    """Scores if the averaging submissions had needed the baseline's time wherever they missed the target."""
    medians = to_target.submissions(best).T
    for name in (QUEUE, EMA):
        medians[name] = medians[name].where(np.isfinite(medians[name]), medians[BASELINE])
    return score.score(medians.T, targets)[0]


def write(path: str, folder: str) -> None:
    """Read the logs at a path; print the tables, and write them and the figures into a folder."""
    read = logs.read(path)
    targets = resolve.resolve(read, "v0.5")
    imagined = what_if(Measured(read, targets).best, targets)
    read = read.only(NAMES)
    read = read.select(read.runs["workload"].isin(resolve.base(targets).index))
    targets = resolve.resolve(read, "v0.5")
    measured = Measured(read, targets)
    trials, best, of_runs = measured.trials, measured.best, measured.curves
    points = same_points(trials, targets)
    medians = to_target.submissions(points)
    same = {
        f"{one} / {other}": speedup.compare(points, medians, targets, [one], other)[one]
        for one, other in ((QUEUE, BASELINE), (EMA, BASELINE), (QUEUE, EMA))
    }
    rows = [
        (name, workload, *row[["ratio", "low", "high", "bound", "pairs", "misses", "baseline_misses"]])
        for name, result in same.items()
        for workload, row in result.workloads.iterrows()
    ]
    rows += [(n, "all", r.ratio, *r.over_studies, r.bound, r.workloads["pairs"].sum(), r.workloads["misses"].sum(),
              r.workloads["baseline_misses"].sum()) for n, r in same.items()]  # fmt: skip
    columns = ["compared", "workload", "ratio", "low", "high", "bound", "pairs", "misses", "misses of the second"]
    parts = {
        "Median time to target": formatted(
            times(best, of_runs, targets),
            **dict.fromkeys(("seconds", "crossed", "between"), ".0f"),
            **{f"{name} / baseline": ".3f" for name in ("seconds", "crossed")},
        ),
        "Seconds per counted step": formatted(calls(best), **dict.fromkeys(NAMES, ".2f")),
        "Where runs that missed the target end, as a share of the budget": formatted(
            ends(trials, targets), min=".3f", median=".3f", max=".3f"
        ),
        "Where averaging broke off": formatted(
            at_the_end(trials, of_runs), **{"its metric": ".4f", "baseline's then": ".4f"}
        ),
        "Same study, same hyperparameters": formatted(
            pd.DataFrame(rows, columns=columns), ratio=".3f", low=".3f", high=".3f"
        ),
        "Scores with the baseline's time for every miss of the two": markdown(
            pd.DataFrame({"submission": imagined.index, "score": [f"{x:.4f}" for x in imagined]})
        ),
    }
    out = files.output_folder(folder)
    text = "\n\n".join(f"## {title}\n\n{table}" for title, table in parts.items())
    (out / "tables.md").write_text(f"# Tables\n\nMade by `python -m scripts.published.algoperf_v05`.\n\n{text}\n")
    print(text)
    style.save(
        learning_curves.learning_curves(of_runs, targets, best, BASELINE, "seconds"), out / "learning_curves", ["png"]
    )
    style.save(ends_figure(trials, targets), out / "where_runs_end", ["png"])
    ratio_rows = speedup.compare(best, to_target.submissions(best), targets, [QUEUE, EMA], BASELINE)
    style.save(ratios.speedups(ratio_rows, BASELINE), out / "time_to_target", ["png"])

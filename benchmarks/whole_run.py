"""Time to the target: the benchmark's own NadamW baseline, ours, and ours with averages.

    python -m benchmarks.whole_run --out=docs/results/whole_run \\
        --baseline=algorithmic-efficiency/algorithms/baselines/external_tuning/pytorch_nadamw_full_budget.py

Trains miniature workloads until the validation target, one process at a time on one thread, the submissions in turns:
the official file as it is, `nadamw`, `lawa`, `ema` and `ema_growing`, all at the workload's tuned point. Seconds are
those that the benchmark counts (without evaluations, with preparing for them). Then the parts of an update, in
processor time.

    python -m benchmarks.whole_run --places=.8,1 --out=docs/results/whole_run/late --baseline=...

Trains to the end of the schedule instead. Late targets are what the official baseline with the same seed has reached by
.8 and by all of its updates. Processor seconds to them are the updates times the profile's milliseconds an update.

Writes runs.csv (with --places curves.csv), tables.md and profile.png to --out. Runs that are in the file are not run
again: a killed command goes on.
"""

import argparse
import contextlib
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from analysis.figures import style
from benchmarks.timing import machine
from benchmarks.training_step import TURN, Training
from miniperf import workloads
from weight_averaging.errors import UsageError

ROOT = Path(__file__).resolve().parents[1]
SPACES = ROOT / "tuning_search_spaces" / "miniperf"
WORKLOADS = ("mini_fastmri", "mini_finewebedu_lm", "mini_ogbg", "mini_imagenet_vit")
BASELINE = "official baseline"
# Of 50 updates: the best for all workloads (docs/results/horizon).
VARIANTS: dict[str, dict[str, Any]] = {
    BASELINE: {},
    "nadamw": {},
    "lawa": {"averaging_interval": 5, "averaging_window": 10},
    "ema": {"averaging_interval": 5, "averaging_decay": 0.82},
    "ema_growing": {"averaging_share": 0.15},
}
EVALUATIONS = 50
PARTS = ("data", "forward and loss", "backward", "optimizer", "averaging", "the rest")
COLOURS = dict(zip(PARTS, [style.COLOURS[number] for number in (0, 2, 6, 1, 4)] + [style.GREY]))


def path_of(variant: str) -> str:
    """Of its submission, from the working folder."""
    return "official_baseline.py" if variant == BASELINE else f"submissions/pytorch/{variant}/submission.py"


def point(workload: str, variant: str) -> dict[str, Any]:
    trial = json.loads((SPACES / "tuned_trials.json").read_text())[workload]
    tuned: dict[str, Any] = json.loads((SPACES / "nadamw.json").read_text())[trial - 1]
    return {**tuned, **VARIANTS[variant]}


@contextlib.contextmanager
def working_folder(baseline: Path) -> Iterator[Path]:
    """A submission is found below the working folder, whose path has no dots: one with the official file and ours."""
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        shutil.copy(baseline, "official_baseline.py")
        Path("submissions").symlink_to(ROOT / "submissions")
        yield Path(name)


def run(folder: Path, workload: str, variant: str, seed: int, to_the_end: bool = False) -> pd.DataFrame:
    """The run's evaluations: updates, seconds, value of the target's metric; until the targets, or to the end."""
    made = workloads.make(workload)
    space = folder / "space.json"
    space.write_text(json.dumps([point(workload, variant)]))
    where = folder / "runs"
    shutil.rmtree(where, ignore_errors=True)
    command = [
        sys.executable, "-m", "miniperf.submission_runner", "--framework=pytorch", f"--workload={workload}",
        f"--submission_path={path_of(variant)}", f"--tuning_search_space={space}", f"--experiment_dir={where}",
        "--experiment_name=run", f"--rng_seed={seed}", f"--max_global_steps={made.step_hint}",
        f"--eval_every_n_steps={made.step_hint // EVALUATIONS}", "--nosave_checkpoints",
        *(["--continue_after_target"] if to_the_end else []),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: {' '.join(command)}\n{done.stderr[-2000:]}")
    (log,) = where.rglob("eval_measurements.csv")
    columns = {"global_step": "updates", "score": "seconds", f"validation/{made.target_metric_name}": "value"}
    return pd.read_csv(log)[list(columns)].rename(columns=columns)


def to_level(workload: str, curve: pd.DataFrame, level: float | None = None) -> tuple[float, float]:
    """Updates and seconds to a level of the metric, by default the validation target; NaN if it is not reached."""
    made = workloads.make(workload)
    wanted = made.validation_target_value if level is None else level
    reached = curve[curve["value"] >= wanted if made.higher_is_better else curve["value"] <= wanted]
    return tuple(reached[["updates", "seconds"]].iloc[0]) if len(reached) else (float("nan"), float("nan"))


def compare(folder: Path, names: list[str], seeds: int, file: Path, to_the_end: bool = False) -> pd.DataFrame:
    """The runs, in turns; each is in `file` once it is done: its time to the target, or to the end its evaluations."""
    columns = ["workload", "seed", "submission", "updates", "seconds", *(["value"] if to_the_end else [])]
    table = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=columns)
    variants = list(VARIANTS)
    wanted = [
        (workload, seed, variants[(seed + turn) % len(variants)])
        for workload in names
        for seed in range(seeds)
        for turn in range(len(variants))
    ]
    known = set(table[columns[:3]].itertuples(index=False, name=None))
    for workload, seed, variant in tqdm([one for one in wanted if one not in known], unit="run", disable=None):
        new = run(folder, workload, variant, seed, to_the_end)
        if not to_the_end:
            new = pd.DataFrame([to_level(workload, new)], columns=["updates", "seconds"])
        new = new.assign(workload=workload, seed=seed, submission=variant)[columns]
        table = pd.concat([table, new], ignore_index=True) if len(table) else new
        table.to_csv(file, index=False, float_format="%.6g")
    return table[table["workload"].isin(names) & (table["seed"] < seeds)]


def late(curves: pd.DataFrame, place: float) -> pd.DataFrame:
    """Updates and seconds of each run to what the official baseline with its seed has reached by a share of its run."""
    rows = []
    for (workload, seed), mine in curves.groupby(["workload", "seed"], sort=False):
        theirs = mine[mine["submission"] == BASELINE]
        by_then = theirs[theirs["updates"] <= place * theirs["updates"].max()]["value"]
        level = by_then.max() if workloads.make(workload).higher_is_better else by_then.min()
        for variant, curve in mine.groupby("submission", sort=False):
            rows.append((workload, seed, variant, *to_level(workload, curve, level)))
    return pd.DataFrame(rows, columns=["workload", "seed", "submission", "updates", "seconds"])


def late_report(curves: pd.DataFrame, places: list[float], parts: pd.DataFrame) -> str:
    """Ratios to the baseline of updates, and of processor seconds by the profile, to the target and the late ones."""
    others = [name for name in VARIANTS if name != BASELINE]
    lines = [f"| | official baseline | {' | '.join(others)} |", "|---" * (1 + len(VARIANTS)) + "|"]
    each = parts.sum(axis=1)
    own = [(keys, *to_level(keys[0], curve)) for keys, curve in curves.groupby(["workload", "seed", "submission"])]
    target = pd.DataFrame([(*keys, *found) for keys, *found in own], columns=curves.columns[:5])
    for label, table in [("the target", target), *((f"{100 * p:.0f} % of training", late(curves, p)) for p in places)]:
        for workload in dict.fromkeys(curves["workload"]):
            mine = table[(table["workload"] == workload) & (table["submission"] == BASELINE)]["updates"]
            updates = ratios(table, "updates").loc[workload]
            seconds = updates.mul(each.loc[workload] / each.loc[workload, BASELINE])
            cells = [f"{shown(updates[name])}; {shown(seconds[name])}" for name in others]
            lines.append(f"| {workload}, {label} | {mine.mean():.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def ratios(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """To the official baseline with the same seed, by workload and seed; of pairs that both reached the target."""
    wide = table.pivot_table(index=["workload", "seed"], columns="submission", values=column, dropna=False)
    return wide.div(wide[BASELINE], axis=0).reindex(columns=list(VARIANTS))


def shown(values: pd.Series) -> str:
    """The geometric mean and the range over seeds."""
    known = values.dropna()
    missed = f", {len(values) - len(known)} missed" if len(known) < len(values) else ""
    if not len(known):
        return "missed"
    return f"{np.exp(np.log(known).mean()):.2f} ({known.min():.2f} to {known.max():.2f}){missed}"


def report(table: pd.DataFrame) -> str:
    lines = ["| | updates, seconds of the official baseline | " + " | ".join(list(VARIANTS)[1:]) + " |"]
    lines.append("|---" * (1 + len(VARIANTS)) + "|")
    updates, seconds = ratios(table, "updates"), ratios(table, "seconds")
    for workload in dict.fromkeys(table["workload"]):
        mine = table[(table["workload"] == workload) & (table["submission"] == BASELINE)]
        base = f"{mine['updates'].mean():.0f}, {mine['seconds'].mean():.1f}"
        cells = [shown(seconds.loc[workload, name]) for name in list(VARIANTS)[1:]]
        lines.append(f"| {workload}, seconds | {base} | {' | '.join(cells)} |")
        cells = [shown(updates.loc[workload, name]) for name in list(VARIANTS)[1:]]
        lines.append(f"| {workload}, updates | | {' | '.join(cells)} |")
        each = seconds.loc[workload] / updates.loc[workload]
        cells = [shown(each[name]) for name in list(VARIANTS)[1:]]
        lines.append(f"| {workload}, seconds an update | | {' | '.join(cells)} |")
    return "\n".join(lines)


class Clock:
    """Processor time by part, of calls that do not nest."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(PARTS, 0.0)

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)  # with what schedulers note on it
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.spent[part] += time.process_time() - start

        return call


def parts_of(training: Training) -> dict[str, float]:
    """Milliseconds an update over a turn that ends with an evaluation's preparations."""
    clock, workload, state = Clock(), training.workload, training.state
    averager, optimizer = state.get("averager"), state["optimizer"]
    backward = torch.Tensor.backward
    patched = [(workload, "model_fn", "forward and loss"), (workload, "loss_fn", "forward and loss")]
    patched += [(optimizer, "step", "optimizer")] + ([(averager, "update", "averaging")] if averager else [])
    before = [(owner, name, vars(owner).get(name)) for owner, name, _ in patched]
    for owner, name, part in patched:
        setattr(owner, name, clock.timed(part, getattr(owner, name)))
    torch.Tensor.backward = clock.timed("backward", backward)  # type: ignore[method-assign]
    start = time.process_time()
    try:
        for _ in range(TURN):
            training.update(clock.timed("data", next)(training.queue))
        clock.timed("averaging", training.prepare)()
    finally:
        torch.Tensor.backward = backward  # type: ignore[method-assign]
        for owner, name, own in before:
            if own is None:
                delattr(owner, name)  # its class has it
            else:
                setattr(owner, name, own)
    total = time.process_time() - start
    clock.spent["the rest"] = total - sum(clock.spent.values())
    return {part: 1e3 * spent / TURN for part, spent in clock.spent.items()}


def profile(names: list[str], rounds: int) -> pd.DataFrame:
    """Median milliseconds of each part, by workload and submission."""
    rows = {}
    for workload in names:
        trainings = {v: Training(workload, path_of(v), {}, base=point(workload, v)) for v in VARIANTS}
        turns: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
        for _ in range(1 + rounds):  # the first warms up
            for variant, training in trainings.items():
                turns[variant].append(parts_of(training))
        for variant, measured in turns.items():
            rows[workload, variant] = {p: statistics.median(turn[p] for turn in measured[1:]) for p in PARTS}
    return pd.DataFrame(rows).T


def picture(parts: pd.DataFrame, file: Path) -> None:
    names = list(dict.fromkeys(workload for workload, _ in parts.index))
    figure, axes = style.panels(len(names), size=(4.0, 2.2))
    for axis, workload in zip(axes, names):
        mine = parts.loc[workload].iloc[::-1]
        left = np.zeros(len(mine))
        for part in PARTS:
            axis.barh(list(mine.index), mine[part], left=left, label=part, color=COLOURS[part])
            left += mine[part].to_numpy()
        axis.set_title(workload)
        axis.set_xlabel("time of an update (ms, lower is better)")
        axis.grid(visible=False, axis="y")
        for variant, row in mine.iterrows():
            if VARIANTS[variant]:
                share = f" averaging: {100 * row['averaging'] / row.sum():.0f} %"
                axis.text(row.sum(), variant, share, va="center", fontsize=7, color=COLOURS["averaging"])
        axis.set_xlim(right=1.25 * mine.sum(axis=1).max())  # for the shares
    for axis in axes:
        axis.tick_params(labelleft=axis.get_subplotspec().is_first_col())
    style.legend_below(figure, axes)
    style.save(figure, file.with_suffix(""), [file.suffix[1:]])


def parts_table(parts: pd.DataFrame) -> str:
    lines = [f"| ms an update | {' | '.join(PARTS)} | all | averaging |", "|---" * (3 + len(PARTS)) + "|"]
    for (workload, variant), row in parts.iterrows():
        cells = " | ".join(f"{row[part]:.2f}" for part in PARTS)
        share = f"{100 * row['averaging'] / row.sum():.1f} %"
        lines.append(f"| {workload}, {variant} | {cells} | {row.sum():.2f} | {share} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", type=Path, required=True, help="the official submission file")
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help=f"default: {','.join(WORKLOADS)}")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--places", help="shares of training for late targets, such as .8,1; trains to the end")
    parser.add_argument("--rounds", type=int, default=5, help="turns of the profile; the median counts (default: 5)")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for runs.csv or curves.csv, tables.md, profile.png"
    )
    arguments = parser.parse_args()
    names = arguments.workloads.split(",")
    try:
        for name in names:
            workloads.module_of(name, "pytorch")
            point(name, "nadamw")
    except UsageError as error:
        parser.error(str(error))
    except KeyError as error:
        parser.error(f"--workloads: {error} has no tuned trial in {SPACES / 'tuned_trials.json'}")
    if min(arguments.seeds, arguments.rounds) < 1:
        parser.error("--seeds and --rounds must be >= 1")
    if not arguments.baseline.is_file():
        parser.error(f"--baseline={arguments.baseline} is no file: name pytorch_nadamw_full_budget.py of a checkout")
    try:
        places = [float(place) for place in (arguments.places or "").split(",") if place]
    except ValueError as error:
        parser.error(f"--places={arguments.places}: {error}")
    if not all(0 < place <= 1 for place in places):
        parser.error(f"--places={arguments.places} must be above 0 and at most 1")
    torch.set_num_threads(1)
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with working_folder(arguments.baseline.resolve()) as folder:
        table = compare(folder, names, arguments.seeds, out / ("curves.csv" if places else "runs.csv"), bool(places))
        parts = profile(names, arguments.rounds)
    picture(parts, out / "profile.png")
    text = f"{machine()}\n\n{late_report(table, places, parts) if places else report(table)}\n\n{parts_table(parts)}\n"
    (out / "tables.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

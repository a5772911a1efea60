"""Other schedules against cosine to zero: raw and averaged, along the way and at the end."""

from collections import Counter

import numpy as np
import pandas as pd

from analysis.evidence import ratios, summaries
from analysis.evidence.data import RAW, Evidence, Run
from analysis.evidence.summaries import CONSTANT, DECAY, PRIMARY
from analysis.text import markdown

SCHEDULES = {
    ("D", "cosine_to_0.1"): "cosine to .1", ("D", "cosine_to_0.25"): "cosine to .25", ("D", "wsd_0.1"): "WSD of .1",
    ("D", "wsd_0.2"): "WSD of .2", ("D", "inverse_sqrt"): "1/sqrt(t)", ("A", CONSTANT): "constant",
}  # fmt: skip
AVERAGES = {RAW: "raw", PRIMARY: "growing, 15 %", "lawa_4": "LAWA of 4 %", "follows_rate_15": "follows the rate"}
PLACES = (0.5, 0.8, 0.9)  # shares of training
NOTE = (
    "Each schedule at its own rate, against the raw weights of the runs with cosine decay to zero, paired by seed. "
    "Ratios are of updates, to the target and to what those have by a share of training, over workloads. At the end: "
    "on how many workloads the final metric is better or worse by more than the margin, within it, or open.\n\n"
)


def table(evidence: Evidence) -> str:
    """A line for each schedule and average; nothing where no schedule of D is run on every workload of A."""
    decay = evidence.of("A", DECAY)
    found = {about: evidence.of(*key) for key, about in SCHEDULES.items()}
    whole = {about: runs for about, runs in found.items() if runs and set(runs) == set(decay)}
    if set(whole) <= {SCHEDULES["A", CONSTANT]}:
        return ""
    rows = [
        _row(about, title, runs, name, decay)
        for about, runs in whole.items()
        for name, title in AVERAGES.items()
        if all(name in [RAW, *run.averages] for mine in runs.values() for run in mine)
    ]
    return NOTE + markdown(pd.DataFrame(rows))


def _row(about: str, title: str, runs: dict[str, list[Run]], name: str, decay: dict[str, list[Run]]) -> dict[str, str]:
    others = {workload: {run.key[3]: run for run in mine} for workload, mine in decay.items()}
    pairs = {
        workload: [
            ratios.pair(run, name, ratios.target(decay[workload]), others[workload][run.key[3]])
            for run in mine
            if run.key[3] in others[workload]
        ]
        for workload, mine in runs.items()
    }
    seeds = sorted({len(given) for given in pairs.values()})
    cells = {"to the target": ratios.summary(pairs).any.shown()}
    for share in PLACES:
        at = summaries.by_share(runs, name, share, decay)
        cells[f"to {share:.0%}"] = at.any.shown() if at else "-"
    words = Counter(one.word for one in summaries.differences(runs, name, decay).values())
    ends = ", ".join(f"{words[word]} {word}" for word in ("better", "within", "worse", "open") if words[word])
    return {"schedule": about, "weights": title, "seeds": " to ".join(map(str, np.unique([seeds[0], seeds[-1]])))} | {
        **cells, "at the end": ends,
    }  # fmt: skip

"""Tables of what was run, and with which learning rates it was tried."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.evidence import summaries
from analysis.evidence.data import RAW, Evidence, Run
from analysis.figures import style
from analysis.text import markdown


def ran(evidence: Evidence) -> str:
    """A line for each workload of each variant: seeds, updates, learning rate, passes over the data."""
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in evidence.runs:
        groups.setdefault(run.key[:3], []).append(run)
    rows = []
    for (part, variant, workload), mine in sorted(groups.items()):
        facts = mine[0].facts
        edge = ", at an edge" if any(run.facts["rate_at_edge"] for run in mine) else ""
        rows.append(
            {
                "part": part, "variant": variant, "workload": workload,
                "seeds": style.runs_of_numbers(sorted(run.key[3] for run in mine)), "updates": str(facts["steps"]),
                "rate": f"{facts['learning_rate']:g}{edge}", "passes": f"{facts['passes']:.1f}",
                "raw, best - end": _fall(mine),
            }
        )  # fmt: skip
    note = (
        "Passes are over the training data. `raw, best - end`: by how much the mean over seeds of the raw validation "
        "metric was better at its best than at the end, over the margin; above 1 the workload overfits at that length."
        "\n\n"
    )
    return note + markdown(pd.DataFrame(rows))


def _fall(runs: Sequence[Run]) -> str:
    """By section 9 of the rules, in margins; `-` where the workload has none."""
    margin = summaries.MARGINS.get(runs[0].key[2])
    curves = [run.curve(RAW)[1] for run in runs]
    if margin is None or len({len(curve) for curve in curves}) > 1:
        return "-"
    mean = np.mean(curves, axis=0)
    return f"{(mean.max() - mean[-1]) / margin:.1f}"


def rates_tried(evidence: Evidence) -> str:
    """A table of the searches, with its heading; nothing where there were none."""
    if evidence.searches.empty:
        return ""
    rows = []
    for (part, variant, workload), here in evidence.searches.groupby(["part", "variant", "workload"]):
        tried = [
            f"{rate:g}: {final:.5g}"
            for rate, final in here.sort_values("learning_rate")[["learning_rate", "final"]].to_numpy()
        ]
        rows.append(
            {"part": part, "variant": variant, "workload": workload, "rate: final metric, seed 0": ", ".join(tried)}
        )
    return f"## Rates tried\n\n{markdown(pd.DataFrame(rows))}\n"

"""The tables of docs/results/horizon are those of the numbers by seed beside them."""

import re

import numpy as np
import pandas as pd
import pytest

from analysis.measures import horizon, intervals
from miniperf import workloads
from tests.support import ROOT

HOME = ROOT / "docs/results/horizon"
FIVE = ("mini_fastmri", "mini_finewebedu_lm", "mini_imagenet_vit", "mini_librispeech_deepspeech", "mini_ogbg")
THREE = ("mini_criteo1tb", "mini_librispeech_conformer", "mini_wmt")
LENGTHS = {name: workloads.make(name).step_hint for name in workloads.WORKLOADS}


def table(first: str) -> pd.DataFrame:
    """Of the page, the one whose header begins with `first`; cells as text."""
    _, rows = (HOME / "README.md").read_text().split(f"\n| {first}", 1)
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in f"| {first}{rows}".split("\n\n")[0].splitlines()
    ]
    return pd.DataFrame(lines[2:], columns=lines[0])


def numbers(name: str) -> pd.DataFrame:
    """With a miss counted as the whole run."""
    result = pd.read_csv(HOME / f"{name}.csv")
    return result.assign(steps=result["steps_to_target"].fillna(result["workload"].map(LENGTHS)))


@pytest.mark.parametrize(
    ("name", "first", "group", "over"),
    [
        ("lawa", "LAWA, interval x window | updates | steps / nadamw, all five", FIVE, "all five"),
        ("lawa", "LAWA, interval x window | updates | steps / nadamw, all three", THREE, "all three"),
        ("ema", "EMA, interval, decay", (*FIVE, *THREE), "all eight"),
    ],
)
def test_the_ratios_to_the_target_are_those_of_the_numbers(name, first, group, over):
    found, page = numbers(f"{name}_horizon"), table(first)
    second = "averaging_window" if name == "lawa" else "averaging_decay"
    column = next(column for column in page if column.endswith(over))
    raw = found[found["submission"] == "nadamw"].set_index(["workload", "seed"])["steps"]
    checked = 0
    for _, line in page[page.iloc[:, 0] != "nadamw"].iterrows():
        interval, other = map(float, re.split(r" x |, ", line.iloc[0]))
        mine = found[(found["averaging_interval"] == interval) & (found[second] == other)]
        steps = mine.set_index(["workload", "seed"])["steps"]
        means = intervals.together([intervals.means(np.log(steps[w] / raw[w]).to_numpy()) for w in group])
        low, high = np.exp(intervals.suite(means))
        assert float(line[column].lstrip("? ")) == pytest.approx(np.exp(means.mean.mean()), abs=0.00051)
        assert [float(end) for end in line["95 %, over seeds"].split(" to ")] == pytest.approx([low, high], abs=0.0051)
        for workload in set(group) & set(page):
            if re.fullmatch(r"\d?\.\d+", line[workload]):
                ratio = steps[workload].mean() / raw[workload].mean()
                assert float(line[workload]) == pytest.approx(ratio, abs=0.0051)
                checked += 1
    assert checked >= 8


def test_the_optima_are_those_of_the_numbers():
    found = numbers("lawa_horizon").rename(columns={"seed": "study"})
    rows = [row for _, row in table("workload                    | measure           | best horizon").iterrows()]
    assert len(rows) == 5
    for line in rows:
        mine = found[(found["workload"] == line["workload"]) & (found["submission"] == "lawa")]
        best = horizon.optimum(mine, "horizon", "steps_to_target", lower=True)
        if line["best horizon"] == "-":
            assert mine["steps_to_target"].isna().any()
            continue
        shown = [float(part) / 100 for part in re.findall(r"([\d.]+)%", line["best horizon"] + line["95 %"])]
        assert shown == pytest.approx([best.best, best.low, best.high], abs=0.00051)

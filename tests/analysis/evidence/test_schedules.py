"""The table of schedules, on made runs whose answers are known."""

from analysis.evidence import schedules
from analysis.evidence.summaries import CONSTANT
from tests.analysis.evidence.test_evidence import evidence, made

WORKLOADS = ("mini_ogbg", "mini_wmt")


def cells_of(text):
    """The lines of the table in a text, by the names of its columns."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    head = [cell.strip() for cell in lines[0].strip("|").split("|")]
    return [dict(zip(head, (cell.strip() for cell in line.strip("|").split("|")))) for line in lines[2:]]


def rows(text):
    return {(line["schedule"], line["weights"]): line for line in cells_of(text)}


def test_schedules_are_held_against_raw_cosine_to_zero_of_the_same_seeds(tmp_path):
    for workload in WORKLOADS:
        for seed in range(4):
            made(tmp_path / "runs", workload, seed, 0.9)
        for seed in range(3):
            made(tmp_path / "runs", workload, seed, 0.7, part="D", variant="cosine_to_0.1", at_end=9.0)
            made(tmp_path / "runs", workload, seed, 0.8, variant=CONSTANT)
    made(tmp_path / "runs", WORKLOADS[0], 0, 0.5, part="D", variant="wsd_0.1")  # not on every workload yet
    found = rows(schedules.table(evidence(tmp_path)))
    assert {name for name, _ in found} == {"cosine to .1", "constant"}
    growing = found["cosine to .1", "growing, 15 %"]
    assert growing["seeds"] == "3"
    for place in ("to the target", "to 50%", "to 80%", "to 90%"):
        assert growing[place].startswith("0.7")
    assert growing["at the end"] == "2 better"
    raw = found["cosine to .1", "raw"]
    assert raw["to 80%"].startswith("1.00")
    assert raw["at the end"] == "2 within"
    assert found["constant", "growing, 15 %"]["to 50%"].startswith("0.8")


def test_without_a_schedule_on_every_workload_there_is_no_table(tmp_path):
    for workload in WORKLOADS:
        made(tmp_path / "runs", workload, 0, 0.9)
        made(tmp_path / "runs", workload, 0, 0.9, variant=CONSTANT)
    made(tmp_path / "runs", WORKLOADS[0], 0, 0.9, part="D", variant="cosine_to_0.1")
    assert schedules.table(evidence(tmp_path)) == ""

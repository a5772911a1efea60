"""What docs/models.md says is shown by the tests that it names."""

import re

from tests.support import ROOT

TRAINERS = {"Lightning", "Hugging Face's Trainer, accelerate", "torchtitan"}
KINDS = ("DDP", "FSDP1", "FSDP2", "HSDP", "tensor parallel", "DeepSpeed", "pipeline", "experts")


def test_the_tests_that_the_docs_name_are_there():
    there = {
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    for page in sorted((ROOT / "docs").glob("*.md")):
        named = re.findall(r"`(test_\w+)`", page.read_text())
        assert not (missing := sorted(set(named) - there)), (page.name, missing)
    assert len(re.findall(r"`(test_\w+)`", (ROOT / "docs/models.md").read_text())) > 40


def test_every_row_of_parallelism_names_a_test_or_says_why_not():
    text = (ROOT / "docs/engine.md").read_text()
    rows = [
        line.strip("| ").split(" | ")
        for head in ("| parallelism | averages | test |", "| trainer | with | test, or why not |")
        for line in text.partition(head)[2].partition("\n\n")[0].splitlines()[2:]
    ]
    assert len(rows) > 15
    for row in rows:
        assert re.search(r"`test_\w+`|refused|not tried|the same$|the tests there$", row[-1]), row
    told: dict[str, str] = {}
    for trainer, kinds, *_ in (row for row in rows if row[0] in TRAINERS):
        told[trainer] = f"{told.get(trainer, '')} {kinds}"
    assert told.keys() == TRAINERS
    for trainer, kinds in told.items():
        assert not (missing := [kind for kind in KINDS if kind not in kinds]), (trainer, missing)

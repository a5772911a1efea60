"""What docs/models.md says is shown by the tests that it names."""

import re

from tests.support import ROOT


def test_the_tests_that_the_docs_name_are_there():
    there = {
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    for page in sorted((ROOT / "docs").glob("*.md")):
        named = re.findall(r"`(test_\w+)`", page.read_text())
        assert not (missing := sorted(set(named) - there)), (page.name, missing)
    assert len(re.findall(r"`(test_\w+)`", (ROOT / "docs/models.md").read_text())) > 40

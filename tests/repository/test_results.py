"""The index of docs/results has every page, and says truly which have numbers by seed."""

import re

from tests.support import ROOT

RESULTS = ROOT / "docs/results"


def test_the_index_has_every_page():
    index = (RESULTS / "README.md").read_text()
    linked = set(re.findall(r"\]\(([\w/]+\.md)\)", index))
    pages = {str(path.relative_to(RESULTS)) for path in RESULTS.rglob("*.md")} - {"README.md"}
    top = {page for page in pages if "/" not in page or page.endswith("/README.md")}
    assert linked == top


def test_the_index_says_which_pages_have_numbers_by_seed():
    rows = re.findall(
        r"^\| \[(\w+)\]\(\1/README\.md\) \|.*\| (.+) \|$", (RESULTS / "README.md").read_text(), re.MULTILINE
    )
    assert len(rows) == 11
    for folder, by_seed in rows:
        links = [RESULTS / link for link in re.findall(r"\]\(([\w/.]+)\)", by_seed)]
        assert all(link.exists() for link in links)
        tables = {path for path in (RESULTS / folder).rglob("*.csv") if path.parent.name != "data"}
        tables |= set((RESULTS / folder).glob("data/runs.csv"))
        assert tables == set(links), folder
        assert by_seed.startswith("no") == (not links)

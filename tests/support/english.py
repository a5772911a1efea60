"""Sentences of a page, counted: `python -m tests.support.english [PAGE ...]` prints the longest of each."""

import re
import statistics
import sys
from pathlib import Path

from tests.support import ROOT

# Words and turns that this project once wore out, and what to say instead.
WORN = {
    r"\bis told\b": "is reported, warns",
    r"\bbeside training\b": "while training continues",
    r"\bruns? of before\b": "earlier runs",
    r"\bsubmissions? of others\b": "other authors' submissions",
    r"\bgoes on bit for bit\b": "resumes bit for bit",
}


def pages() -> list[Path]:
    """README, CONTRIBUTING and the pages of docs, without the results."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def sentences(text: str) -> list[str]:
    """The sentences of the running text of a page: no code, tables, headings or pictures."""
    text = re.sub(r"^```.*?^```$", "\n", text, flags=re.M | re.S)
    text = re.sub(r"^(    .*|\t.*| *\|.*|#.*|!\[.*)$", "", text.replace("**", ""), flags=re.M)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`[^`]*`", "code", text)
    found = []
    for paragraph in re.split(r"\n\s*\n|^\s*(?:[-*]|\d+\.)\s", text, flags=re.M):
        one = " ".join(paragraph.split()).replace("e.g.", "eg").replace("et al.", "et al")
        found += [s for s in re.split(r"(?<=[.!?:;])\s+(?=[A-Z(\d`*])", one) if len(s.split()) > 2]
    return found


def median_words(text: str) -> float:
    """The median number of words of a page's sentences; 0 for a page without any."""
    return statistics.median(len(s.split()) for s in found) if (found := sentences(text)) else 0.0


if __name__ == "__main__":
    for page in [Path(name) for name in sys.argv[1:]] or pages():
        found = sorted(sentences(page.read_text()), key=lambda sentence: -len(sentence.split()))
        print(f"{page.name}: median {median_words(page.read_text()):.0f} words, {len(found)} sentences")
        for sentence in found[: 3 if len(sys.argv) > 1 else 0]:
            print(f"  {len(sentence.split())}: {sentence}")

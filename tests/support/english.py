"""Sentences of pages and docstrings: `python -m tests.support.english [FILE ...]` prints the longest of each."""

import ast
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
        parts = re.split(r"(?<=[.!?:;])\s+(?=[A-Z(\d`*])|(?<=[.!?])\s+(?=code\b)", one)
        found += [sentence for sentence in parts if len(sentence.split()) > 2]
    return found


def docstrings(path: Path) -> dict[str, str]:
    """The docstrings of a module and of its public classes, functions and methods, by name."""
    found = {}

    def visit(node: ast.Module | ast.ClassDef | ast.FunctionDef, name: str) -> None:
        if text := ast.get_docstring(node):
            found[name] = text
        inner = [] if isinstance(node, ast.FunctionDef) else node.body
        for child in inner:
            if isinstance(child, ast.ClassDef | ast.FunctionDef) and not child.name.startswith("_"):
                visit(child, f"{name}.{child.name}")

    visit(ast.parse(path.read_text()), path.stem)
    return found


def docstring_sentences(text: str) -> list[str]:
    """The sentences of a docstring, of its sections too: what is said of an argument begins a sentence."""
    text = re.sub(r"^ *>>>.*?(?=^ *$|\Z)", "", text, flags=re.M | re.S)  # doctests
    text = re.sub(r"^  +--.*\n(   +.*\n)*", "", text, flags=re.M)  # tables of flags
    outside, *sections = re.split(r"^(?:Args|Attributes|Returns|Raises|Yields):$", text, flags=re.M)
    found = sentences(outside)
    for section in sections:
        inside, _, after = re.sub(r"^    ", "", section.strip("\n"), flags=re.M).partition("\n\n")
        for entry in re.split(r"\n(?! )", inside):
            found += sentences(" ".join(re.sub(r"^[\w, *]{1,60}: ", "", entry).split()))
        found += sentences(after)
    return found


def median_words(text: str) -> float:
    """The median number of words of a page's sentences; 0 for a page without any."""
    return statistics.median(len(s.split()) for s in found) if (found := sentences(text)) else 0.0


if __name__ == "__main__":
    for page in [Path(name) for name in sys.argv[1:]] or pages():
        if page.suffix == ".py":
            found = [s for text in docstrings(page).values() for s in docstring_sentences(text) if len(s.split()) > 25]
            print(f"{page}: {len(found)} long", *(f"  {len(s.split())}: {s}" for s in found), sep="\n")
            continue
        found = sorted(sentences(page.read_text()), key=lambda sentence: -len(sentence.split()))
        print(f"{page.name}: median {median_words(page.read_text()):.0f} words, {len(found)} sentences")
        for sentence in found[: 3 if len(sys.argv) > 1 else 0]:
            print(f"  {len(sentence.split())}: {sentence}")

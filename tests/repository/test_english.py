"""Pages are short sentences, without the turns that this project wore out (`tests/support/english.py`)."""

import re
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.english import WORN, docstring_sentences, docstrings, median_words, pages, sentences

MOST = 18  # words, the median over a page's sentences
LONGEST = 25  # words of a sentence


def worn_out(text: str) -> list[str]:
    """What to say instead of each worn-out turn of a text."""
    return [f"{turn}: {better}" for turn, better in WORN.items() if re.search(turn, text, re.IGNORECASE)]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_a_page_is_short_sentences_without_worn_out_turns(page: Path):
    text = " ".join(page.read_text().split())
    assert not worn_out(text)
    assert median_words(page.read_text()) <= MOST
    assert [sentence for sentence in sentences(page.read_text()) if len(sentence.split()) > LONGEST] == []


def test_sentences_are_those_of_running_text():
    text = """# A heading that is no sentence

**Bold begins it.** Then `code with words` follows. It costs 2.5 s: that is [a link](page.md)
over two lines.

| a table | is none |
|---|---|

    nor is indented code

```python
nor = "is this block"
```
- An item is one. Another
  is too
"""
    assert sentences(text) == [
        "Bold begins it.", "Then code follows.", "It costs 2.5 s: that is a link over two lines.",
        "An item is one.", "Another is too",
    ]  # fmt: skip
    assert median_words(text) == 3
    assert worn_out("The bad value is told, beside training.") == [
        r"\bis told\b: is reported, warns", r"\bbeside training\b: while training continues",
    ]  # fmt: skip


ROOMS = ("weight_averaging", "submissions", "miniperf", "analysis", "launching", "scripts")
MODULES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_public_docstring_has_short_sentences(path: Path):
    for name, text in docstrings(path).items():
        for sentence in docstring_sentences(text):
            assert len(sentence.split()) <= LONGEST, f"{name}: {sentence}"


def test_sentences_of_a_docstring_are_those_of_its_sections_too():
    text = """The mean of all. It has one equation:

    theta <- mean of all

Args:
    first: the first of them. `code` begins a sentence,
        and goes on.
    second, third: others; no more.
Returns:
    Whether it was.

Not so long.

>>> 1 + 1
2
"""
    assert docstring_sentences(text) == [
        "The mean of all.", "It has one equation:", "the first of them.", "code begins a sentence, and goes on.",
        "others; no more.", "Whether it was.", "Not so long.",
    ]  # fmt: skip

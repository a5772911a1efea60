"""Pages are short sentences, without the turns that this project wore out (`tests/support/english.py`)."""

import re
from pathlib import Path

import pytest

from tests.support.english import WORN, median_words, pages, sentences

MOST = 18  # words, the median over a page's sentences
REWRITTEN_NEXT = {  # page: why it does not keep the rule yet
    "offline.md": "a worn-out turn; changes with the commands it describes",
    "official.md": "long sentences; changes with the harness it describes",
    "trainers.md": "a worn-out turn; changes with the trainers it describes",
}


def worn_out(text: str) -> list[str]:
    """What to say instead of each worn-out turn of a text."""
    return [f"{turn}: {better}" for turn, better in WORN.items() if re.search(turn, text, re.IGNORECASE)]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_a_page_is_short_sentences_without_worn_out_turns(page: Path, request):
    if reason := REWRITTEN_NEXT.get(page.name):
        request.applymarker(pytest.mark.xfail(reason=reason, strict=False))
    text = " ".join(page.read_text().split())
    assert not worn_out(text)
    assert median_words(page.read_text()) <= MOST


def test_the_pages_to_be_rewritten_are_pages():
    assert set(REWRITTEN_NEXT) <= {page.name for page in pages()}


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

"""What docs/jax.md shows runs as it stands, block after block."""

import re

from tests.support import ROOT

PAGE = ROOT / "docs/jax.md"


def test_the_snippets_of_the_page_run_and_do_what_they_say(capsys):
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    steps, losses = zip(*(line.split() for line in capsys.readouterr().out.splitlines()))
    assert steps == ("100", "200")
    assert float(losses[1]) < float(losses[0])
    assert int(names["averaging"].count) == 1
    assert names["theirs"].snapshot_steps == [1, 2]

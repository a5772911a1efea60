"""What docs/jax.md shows runs as it stands, block after block."""

import re

from tests.support import ROOT

PAGE = ROOT / "docs/jax.md"


def test_the_snippets_of_the_page_run_and_do_what_they_say(capsys):
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 7
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    steps, losses = zip(*(line.split() for line in capsys.readouterr().out.splitlines()))
    assert steps == ("100", "200")
    assert float(losses[1]) < float(losses[0])
    assert int(names["averaging"].count) == 1
    in_loop, in_chain = (float(names["loss"](names[key], names["data"])) for key in ("chained", "in_chain"))
    assert names["in_chain"]["w"] != names["chained"]["w"]
    assert in_chain < 2 * in_loop
    assert int(names["beside"].state.count) == 200
    assert names["net"].kernel[...] == names["trained"]
    assert names["nnx_average"] < 0.01
    assert names["theirs"].snapshot_steps == [1, 2]

"""A wrong word on the command line ends with one line: what is wrong, and an example that runs."""

import subprocess
import sys

import pytest

from weight_averaging.cli import COMMANDS, main, parser


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "the following arguments are required: COMMAND; for example: weight-averaging inspect runs/mine;"),
        (["avrage"], "invalid choice: 'avrage'"),
        (["plan", "--params=7B"], "required: --step-seconds; for example: weight-averaging plan --params 124e6"),
        (["plan", "--params=x", "--step-seconds=1"], "must be a number of weights, as 7e9 or 7B, not x"),
        (["average"], "required: PATH; for example: weight-averaging average"),
        (["average", ".", "--no-such"], "--no-such"),
    ],
)
def test_a_wrong_word_is_one_line_with_an_example(words, says, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert line.endswith("--help` has the rest")


def test_the_examples_of_all_commands_are_commands():
    """What an error line shows can be parsed."""
    for name, module in COMMANDS.items():
        command = module.EXAMPLES.splitlines()[1].strip().partition("  ")[0].split()
        assert command[:2] == ["weight-averaging", name]
        parser().parse_args(command[1:])


def test_a_reader_that_has_seen_enough_is_no_error():
    command = f"{sys.executable} -m weight_averaging plan --params=7B --step-seconds=1 | head -n 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.startswith("7e+09 weights in float32")


def test_torch_without_numpy_says_nothing_beside_the_error():
    code = "import sys; sys.modules['numpy'] = None; from weight_averaging.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "inspect", "missing"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()) == (2, [done.stderr.strip()])
    assert done.stderr.startswith("error: missing")

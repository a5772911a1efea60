"""The command `weight-averaging merge`: weights of models, and what it says and refuses."""

import pytest
import torch

from weight_averaging import cli


@pytest.fixture
def models(tmp_path):
    for number, name in enumerate("abc", start=1):
        torch.save({"w": torch.tensor([float(number), 10.0 * number])}, tmp_path / f"{name}.pt")
    return tmp_path


def merged(capsys, models, *arguments) -> str:
    try:
        cli.main(["merge", *map(str, arguments), f"--out={models / 'out.pt'}"])
    except SystemExit:
        return capsys.readouterr().err
    return capsys.readouterr().out


def test_the_command_merges_with_and_without_weights(models, capsys):
    paths = [models / f"{name}.pt" for name in "abc"]
    said = merged(capsys, models, *paths)
    assert f"2: {paths[1]}, weight 0.333333" in said
    torch.testing.assert_close(torch.load(models / "out.pt")["w"], torch.tensor([2.0, 20.0]))
    merged(capsys, models, "--overwrite", *paths, "--weights=a=.5,c.pt=.2", f"--weights={paths[1]}=.3")
    torch.testing.assert_close(torch.load(models / "out.pt")["w"], torch.tensor([1.7, 17.0]))
    merged(capsys, models, "--overwrite", f"--weights={paths[2]}=2,{paths[0]}=-1")
    torch.testing.assert_close(torch.load(models / "out.pt")["w"], torch.tensor([5.0, 50.0]))
    assert "is one model, and merging takes two or more" in merged(capsys, models, "--overwrite", paths[1])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--weights=a.pt=.5,b.pt=.4"], "--weights: weights must have the sum 1, not 0.9"),
        (["--weights=a.pt=half"], "--weights: expected NAME=NUMBER, not 'a.pt=half'"),
        (["--weights=a.pt=.5,a.pt=.5"], "--weights: a.pt is there twice"),
        (["a.pt", "b.pt", "--weights=a=1"], "--weights: there is none for b.pt"),
        (["a.pt", "b.pt", "--weights=a=.5,d=.5"], "--weights: d is none of the checkpoints named"),
        (["a.pt", "d.pt"], "d.pt is not there"),
        (["a.pt"], "a.pt is one model, and merging takes two or more: name others"),
        (["a.pt", "b.pt", "one/b.pt", "--weights=a=.5,b=.5"], "--weights: b is 2 of the checkpoints named"),
        (["a.pt", "b.pt", "--weights=.5"], "--weights: .5 is none of the checkpoints named"),
        (["--weights=.5"], "--weights: .5 is none of the checkpoints named"),
        ([], "say what to merge: a.pt b.pt, or --weights a.pt=.5,b.pt=.5"),
    ],
)
def test_merges_that_make_no_sense_end_in_one_line(models, capsys, monkeypatch, arguments, says):
    monkeypatch.chdir(models)
    assert merged(capsys, models, *arguments) == f"error: {says}\n"

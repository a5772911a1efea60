"""What the tests of checkpoint forms share: states, their mean, and the command."""

import torch

from tests.support.small_models import model_of, randomise
from weight_averaging import cli


def state_of(seed: int) -> dict[str, torch.Tensor]:
    model = model_of()
    randomise(model, seed)
    return model.state_dict()


def mean_of(states, name: str) -> torch.Tensor:
    return torch.stack([state[name].double() for state in states]).mean(0).float()


def command(capsys, *arguments) -> str:
    """What the command says: on stderr if it fails."""
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit:
        return capsys.readouterr().err
    return capsys.readouterr().out


def is_mean(state, states) -> None:
    assert state.keys() == states[-1].keys()
    for name, value in state.items():
        expected = mean_of(states, name) if value.is_floating_point() else states[-1][name]
        torch.testing.assert_close(value, expected.to(value.dtype))

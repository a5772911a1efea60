"""Small models for tests of the averagers, and what is asked of them."""

import io

import numpy as np
import torch
from torch import nn


def model_of(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2, bias=False)).to(dtype)


def randomise(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in floats(model):
            tensor.copy_(torch.randn(tensor.shape, generator=generator))


def floats(model: nn.Module) -> list[torch.Tensor]:
    return [t for t in [*model.parameters(), *model.buffers()] if t.is_floating_point()]


def flat(model: nn.Module) -> np.ndarray:
    return torch.cat([t.detach().double().reshape(-1) for t in floats(model)]).numpy()


def value_of(averager, model) -> np.ndarray:
    with averager.averaged():
        return flat(model)


def saved(averager) -> dict:
    """The state after a trip through a file that may hold nothing but tensors and plain values."""
    file = io.BytesIO()
    torch.save(averager.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def scalar_model(dtype: torch.dtype = torch.float32) -> nn.Module:
    return nn.Linear(1, 1, bias=False).to(dtype)


def feed(averager, model, values, first_step=1):
    for step, value in enumerate(values, start=first_step):
        with torch.no_grad():
            model.weight.fill_(value)
        averager.update(step)


def average_of(averager, model) -> float:
    with averager.averaged():
        return model.weight.item()

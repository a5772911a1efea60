"""Made-up batches in the shapes of the official workloads, for the drivers beside this file."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from jraph import GraphsTuple
from torch import Tensor

SAMPLES, TARGETS = 320_000, 256  # of an utterance, as the official pipeline pads them


def _images(rng: np.random.RandomState, count: int, shape: tuple[int, ...], classes: int) -> dict[str, Any]:
    return {
        "inputs": _normal(rng, count, *shape),
        "targets": torch.from_numpy(rng.randint(0, classes, count)),
        "weights": torch.ones(count, dtype=torch.bool),
    }


def _criteo(rng: np.random.RandomState, count: int) -> dict[str, Any]:
    dense = np.abs(rng.randn(count, 13))
    categorical = rng.randint(0, 1_000_000, (count, 26))
    inputs = torch.from_numpy(np.concatenate([dense, categorical], axis=1).astype(np.float32))
    targets = torch.from_numpy(rng.randint(0, 2, (count, 1)).astype(np.float32))
    return {"inputs": inputs, "targets": targets, "weights": torch.ones(count)}


def _fastmri(rng: np.random.RandomState, count: int) -> dict[str, Any]:
    one = torch.ones(count)
    sides = {"inputs": _normal(rng, count, 320, 320), "targets": _normal(rng, count, 320, 320)}
    return {**sides, "mean": 0 * one, "std": one, "volume_max": one, "weights": one}


def _speech(rng: np.random.RandomState, count: int) -> dict[str, Any]:
    lengths = rng.randint(20, 60, (count, 1))
    target_paddings = torch.from_numpy((np.arange(TARGETS) >= lengths).astype(np.float32))
    targets = torch.from_numpy(rng.randint(1, 1024, (count, TARGETS)))
    inputs = 0.1 * _normal(rng, count, SAMPLES)
    return {"inputs": (inputs, torch.zeros_like(inputs)), "targets": (targets, target_paddings)}


def _wmt(rng: np.random.RandomState, count: int) -> dict[str, Any]:
    inputs, targets = (torch.from_numpy(rng.randint(1, 32_000, (count, 256))) for _ in range(2))
    return {"inputs": inputs, "targets": targets, "weights": torch.ones(count, 256, dtype=torch.bool)}


def _lm(rng: np.random.RandomState, count: int) -> dict[str, Any]:
    rows = torch.from_numpy(rng.randint(0, 320, (count, 1025 if count < 4 else 33)))  # 4 of the small one
    return {"inputs": rows[:, :-1].int(), "targets": rows[:, 1:].contiguous(), "weights": None}


def _ogbg(rng: np.random.RandomState, count: int) -> dict[str, Any]:
    nodes, edges = 12, 26  # of each molecule
    ends = [torch.from_numpy(rng.randint(0, nodes, (count, edges)) + nodes * np.arange(count)[:, None]) for _ in "sr"]
    graph = GraphsTuple(
        nodes=_normal(rng, count * nodes, 9),
        edges=_normal(rng, count * edges, 3),
        senders=ends[0].reshape(-1),
        receivers=ends[1].reshape(-1),
        globals={},
        n_node=torch.full((count,), nodes),
        n_edge=torch.full((count,), edges),
    )
    targets = torch.from_numpy(rng.randint(0, 2, (count, 128)).astype(np.float32))
    return {"inputs": graph, "targets": targets, "weights": torch.ones(count, 128, dtype=torch.bool)}


def _normal(rng: np.random.RandomState, *shape: int) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


_BATCHES: dict[str, Callable[[np.random.RandomState, int], dict[str, Any]]] = {
    "criteo1tb": _criteo,
    "criteo1tb_test": _criteo,
    "fastmri": _fastmri,
    "finewebedu_lm": _lm,
    "imagenet_resnet": lambda rng, count: _images(rng, count, (3, 224, 224), 1000),
    "imagenet_vit": lambda rng, count: _images(rng, count, (3, 224, 224), 1000),
    "librispeech_conformer": _speech,
    "librispeech_deepspeech": _speech,
    "mnist": lambda rng, count: _images(rng, count, (1, 28, 28), 10),
    "ogbg": _ogbg,
    "wmt": _wmt,
}


def batch(workload: str, seed: list[int], count: int) -> dict[str, Any]:
    """A training batch of `count` examples, as the PyTorch workload's input queue delivers it."""
    return _BATCHES[workload](np.random.RandomState(seed), count)


def as_jax(workload: str, batch: dict[str, Any]) -> dict[str, Any]:
    """A batch as the JAX workload's input queue delivers it: NumPy arrays, images with their channels last."""
    arrays = jax.tree.map(np.asarray, batch)
    if workload == "mnist" or workload.startswith("imagenet"):
        arrays["inputs"] = np.moveaxis(arrays["inputs"], 1, -1)
    return arrays

"""LoRA adapters: what it costs that A and B are averaged apart, and adapters that may not be averaged at all.

An adapter changes a weight by s B A. The mean of several is the mean of the products, which has a larger rank; the
product of the means is another update. Along one run, where adapters are near one another, they hardly differ.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from weight_averaging.averages import Average, SnapshotError
from weight_averaging.offline.reading.snapshots import Snapshots

# What the two factors are called by peft, kohya's scripts and diffusers.
_FACTORS = (
    ("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"), ("lora_down", "lora_up"), ("lora.down", "lora.up"),
)  # fmt: skip
_SCALES = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "peft_type")
_PROBES = 16  # random directions: the error of updates is that of their effect on these, give or take a few percent
_MOST = 0.1  # of the updates' size; adapters of one run are off by 0.005, those of several by more than half
_ASKED = 4  # averages that are looked at


def check_low_rank(
    snapshots: Snapshots, wanted: Sequence[tuple[Average, int]], names: Collection[str], along_run: bool
) -> list[str]:
    """What is to be said about the low-rank adapters among tensors of these names; nothing where there are none.

    Args:
        wanted: (average, step) pairs.
        along_run: whether snapshots are of one run.
    Raises:
        SnapshotError: adapters are scaled differently. Those of several runs are refused too where the update of the
            average would be more than a tenth off the mean of their updates.
    """
    pairs = _pairs(names)
    if not pairs:
        return []
    steps = sorted({step for average, at in wanted for step in average.members(snapshots.steps, at)})
    _check_scales(snapshots, steps, [name for name in names if name.rpartition(".")[2] == "alpha"])
    off = max(
        _error(snapshots, pairs, dict(zip(members, average.coefficients(len(members)))))
        for average, at in wanted[-_ASKED:]
        for members in [average.members(snapshots.steps, at)]
    )
    if off > _MOST and not along_run:
        raise SnapshotError(
            f"the adapters' A and B would be averaged apart, and the update B A be {100 * off:.0f} % off the mean of "
            "their updates: add the products, by peft's add_weighted_adapter(combination_type='cat'), or merge each "
            "adapter into its model first (merge_and_unload)"
        )
    return [
        f"LoRA: A and B are averaged apart, so that the update B A is {100 * off:.2g} % off the mean of the updates"
    ]


def _pairs(names: Iterable[str]) -> dict[str, str]:
    """The name of B by that of A."""
    known = set(names)
    found = {}
    for name in known:
        for a, b in _FACTORS:
            other = b.join(name.rsplit(a, 1))
            if other != name and other in known:
                found[name] = other
    return dict(sorted(found.items()))


def _check_scales(snapshots: Snapshots, steps: Sequence[int], alphas: Sequence[str]) -> None:
    first = _scales(snapshots, steps[0], alphas)
    for step in steps[1:]:
        for key, value in _scales(snapshots, step, alphas).items():
            if first[key] != value:
                raise SnapshotError(
                    f"{snapshots.paths[step]} has {key} {value}, and {snapshots.paths[steps[0]]} {first[key]}: such "
                    "adapters cannot be averaged; merge each into its model first (merge_and_unload)"
                )


def _scales(snapshots: Snapshots, step: int, alphas: Sequence[str]) -> Mapping[str, object]:
    path = snapshots.paths[step] / "adapter_config.json"
    config: object = {}
    if path.is_file():
        try:
            config = json.loads(path.read_text())
        except (ValueError, RecursionError):
            config = None
        if not isinstance(config, dict):
            raise SnapshotError(f"{path} is damaged: it is no JSON object")
    assert isinstance(config, dict)
    values = snapshots.state(step, alphas)
    return {key: config.get(key) for key in _SCALES} | {name: value.tolist() for name, value in values.items()}


def _error(snapshots: Snapshots, pairs: Mapping[str, str], weights: Mapping[int, float]) -> float:
    """How far the product of the means is from the mean of the products, as a share of that (Frobenius norms)."""
    random = torch.Generator().manual_seed(0)
    probes: dict[str, Tensor] = {}
    means: dict[str, Tensor] = {}
    products: dict[str, Tensor] = {}
    for step, weight in weights.items():
        state = snapshots.state(step, [*pairs, *pairs.values()])
        for a, b in pairs.items():
            down, up = (state[name].float().flatten(1) for name in (a, b))
            if a not in probes:
                probes[a] = torch.randn(down.shape[1], _PROBES, generator=random)
            _add(products, a, up @ (down @ probes[a]), weight)
            _add(means, a, down, weight)
            _add(means, b, up, weight)
    off = sum((means[b] @ (means[a] @ probes[a]) - products[a]).square().sum().item() for a, b in pairs.items())
    size: float = sum(product.square().sum().item() for product in products.values())
    return (off / size) ** 0.5 if size else 0.0


def _add(sums: dict[str, Tensor], name: str, value: Tensor, weight: float) -> None:
    sums[name] = sums[name].add_(value, alpha=weight) if name in sums else value * weight

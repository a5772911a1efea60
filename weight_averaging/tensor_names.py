"""Names of tensors: without what wrappers add, and those that averages leave alone. Pure Python.

Online the modules themselves tell more (`weight_averaging.torch.model.selection`); here there are names alone.
"""

import re
from collections.abc import Mapping, Sequence

# The parts that torch.compile, FSDP1, activation checkpointing and Lightning Fabric put into a name.
WRAPPERS = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_original_module"}
)
DATA_PARALLEL = "module"  # DDP's

_POWER_ITERATION = re.compile(r"(?:.*\.)?parametrizations\.[^.]+\.\d+\._[uv]")
_RANGES = ({"min_val", "max_val"}, {"scale", "zero_point"})  # of observers and fake quantisation
_SCALES = ("scale", "absmax", "SCB", "zero")


def without_wrappers(name: str) -> str:
    """A name without the parts in WRAPPERS."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def clean_names(names: Sequence[str]) -> list[str]:
    """The names of a saved state dict without the parts that wrappers add.

    `module.` of DDP is dropped, once, where every name begins with it: a submodule that is really called `module` keeps
    its name beside others. Where dropping would make two names equal, all are kept as they are.

    >>> clean_names(["module._orig_mod.a", "module.b._checkpoint_wrapped_module.c"])
    ['a', 'b.c']
    >>> clean_names(["module.a", "head.a"])
    ['module.a', 'head.a']
    """
    cleaned = [without_wrappers(name) for name in names]
    if all(name.startswith(f"{DATA_PARALLEL}.") for name in cleaned):
        cleaned = [name.removeprefix(f"{DATA_PARALLEL}.") for name in cleaned]
    return cleaned if len(set(cleaned)) == len(cleaned) else list(names)


def not_to_average(tensors: Mapping[str, bool]) -> dict[str, str]:
    """The tensors whose mean means nothing, as far as their names tell, each with what it is.

    - the singular vectors of spectral norm (`_u`, `_v`): unit vectors whose mean is no unit vector;
    - masks of pruning, which would become fractions;
    - what observers and fake quantisation have seen, and scales beside 8-bit integers, which belong to the latest ones.

    Args:
        tensors: of all tensors of a model the names, and whether each is of an 8-bit integer type.

    >>> not_to_average({"fc.weight_orig": False, "fc.weight_mask": False, "fc.weight": True, "fc.scale": False})
    {'fc.weight_mask': 'pruning mask', 'fc.scale': 'quantisation'}
    >>> not_to_average({"a.weight_orig": False, "a.weight_u": False, "b.parametrizations.weight.0._u": False})
    {'a.weight_u': 'spectral norm', 'b.parametrizations.weight.0._u': 'spectral norm'}
    >>> not_to_average({"attention.bias": True, "attention.scale": False, "c.weight_u": False, "c.scale": False})
    {}
    """
    siblings: dict[str, set[str]] = {}
    quantised = set()
    for name, is_8_bit in tensors.items():
        module, _, key = name.rpartition(".")
        siblings.setdefault(module, set()).add(key)
        if is_8_bit and "mask" not in key and key != "bias":  # attention masks may be so, also called bias
            quantised.add(module)
    found = {}
    for name in tensors:
        module, _, key = name.rpartition(".")
        stem, _, suffix = key.rpartition("_")
        if _POWER_ITERATION.fullmatch(name) or (suffix in ("u", "v") and f"{stem}_orig" in siblings[module]):
            found[name] = "spectral norm"
        elif suffix == "mask" and f"{stem}_orig" in siblings[module]:
            found[name] = "pruning mask"
        elif any(key in keys and keys <= siblings[module] for keys in _RANGES) or (
            module in quantised and any(word in key for word in _SCALES)
        ):
            found[name] = "quantisation"
    return found

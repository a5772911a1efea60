"""Random keys as the official harness makes them for PyTorch: pairs of 31-bit integers drawn by numpy.

The draws are those of `algoperf/random_utils.py`, so that one seed gives one run under either runner. Beside the keys
numpy's and Python's global generators are seeded and kept in checkpoints, for whatever draws from them.
"""

import random
from typing import Any

import numpy as np

_LIMIT = 2**31 - 1  # a key is an integer or a pair of them


def _generator(key: Any) -> np.random.RandomState:
    if np.ndim(key) == 0:
        return np.random.RandomState(int(key) % _LIMIT)
    return np.random.RandomState([int(part) % _LIMIT for part in key])


def split(key: Any, num: int = 2) -> np.ndarray:
    """`num` new keys, shape [num, 2]."""
    return _generator(key).randint(0, _LIMIT, size=(num, 2), dtype=np.int32)


def fold_in(key: Any, data: int) -> list[int]:
    """A key that also depends on `data`, say the step."""
    return [int(_generator(key).randint(0, _LIMIT, dtype=np.int32)), data]


def key_from_seed(seed: int) -> np.ndarray:
    return split(seed)[0]


def seed_globals(seed: int) -> None:
    np.random.seed(seed % 2**32)
    random.seed(seed)


def global_state() -> dict[str, Any]:
    """The state of both generators, in lists, numbers and strings."""
    state = np.random.get_state(legacy=False)
    version, words, gauss = random.getstate()
    numpy = {"key": state["state"]["key"].tolist(), "pos": int(state["state"]["pos"])}
    numpy |= {"has_gauss": int(state["has_gauss"]), "gauss": float(state["gauss"])}
    return {"numpy": numpy, "python": [version, list(words), gauss]}


def set_global_state(state: dict[str, Any]) -> None:
    numpy = state["numpy"]
    key = np.asarray(numpy["key"], np.uint32)
    np.random.set_state(("MT19937", key, numpy["pos"], numpy["has_gauss"], numpy["gauss"]))
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))

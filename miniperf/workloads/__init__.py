"""The workloads by name, each in a folder and imported only when asked for: it brings its own packages.

`<folder>/data.py` is what no framework is needed for, `<folder>/pytorch.py` the workload in PyTorch, `<folder>/jax.py`
in JAX, where there is one.
"""

import importlib
import importlib.util

from miniperf import spec
from weight_averaging.errors import UsageError

# The miniatures, which bring their data along.
WORKLOADS = {
    "mini_criteo1tb": ("criteo1tb", "MiniCriteo1TbWorkload"),
    "mini_fastmri": ("fastmri", "MiniFastMriWorkload"),
    "mini_finewebedu_lm": ("finewebedu_lm", "MiniFinewebEduLmWorkload"),
    "mini_imagenet_vit": ("imagenet_vit", "MiniImagenetVitWorkload"),
    "mini_librispeech_conformer": ("librispeech_conformer", "MiniLibriSpeechConformerWorkload"),
    "mini_librispeech_deepspeech": ("librispeech_deepspeech", "MiniLibriSpeechDeepSpeechWorkload"),
    "mini_ogbg": ("ogbg", "MiniOgbgWorkload"),
    "mini_wmt": ("wmt", "MiniWmtWorkload"),
}
# Of full size, with data of the user's.
FULL_SIZE = {"finewebedu_lm_124m": ("finewebedu_lm_124m", "FinewebeduLm124mWorkload")}
_ALL = {**WORKLOADS, **FULL_SIZE}


def names(framework: str) -> list[str]:
    """The workloads that there are in a framework."""
    return [name for name in WORKLOADS if _there(name, framework)]


def module_of(name: str, framework: str) -> str:
    """The module that has the workload `name` in a framework. UsageError if there is none."""
    if name not in _ALL:
        raise UsageError(f"--workload={name} is unknown; choose from {', '.join(_ALL)}")
    if not _there(name, framework):
        others = [other for other in _ALL if _there(other, framework)]
        raise UsageError(f"--workload={name} has no form in {framework}; these have: {', '.join(others)}")
    return f"{__name__}.{_ALL[name][0]}.{framework}"


def make(name: str, framework: str = "pytorch") -> spec.Workload:
    """The workload `name`, its data not yet loaded. UsageError if there is none in this framework."""
    return getattr(importlib.import_module(module_of(name, framework)), _ALL[name][1])()


def _there(name: str, framework: str) -> bool:
    return importlib.util.find_spec(f"{__name__}.{_ALL[name][0]}.{framework}") is not None

"""The miniature workloads by name, in each a framework: `<folder>/data.py` is what no framework is needed for,
`<folder>/pytorch.py` the workload in PyTorch. Each is imported only when asked for: it brings its own packages."""

import importlib
import importlib.util

from miniperf import spec
from miniperf.errors import UsageError

WORKLOADS = {
    "mini_criteo1tb": ("criteo1tb", "MiniCriteo1TbWorkload"),
    "mini_fastmri": ("fastmri", "MiniFastMriWorkload"),
    "mini_imagenet_vit": ("imagenet_vit", "MiniImagenetVitWorkload"),
    "mini_librispeech_conformer": ("librispeech_conformer", "MiniLibriSpeechConformerWorkload"),
    "mini_librispeech_deepspeech": ("librispeech_deepspeech", "MiniLibriSpeechDeepSpeechWorkload"),
    "mini_ogbg": ("ogbg", "MiniOgbgWorkload"),
    "mini_wmt": ("wmt", "MiniWmtWorkload"),
}


def module_of(name: str, framework: str) -> str:
    """The module that has the workload `name` in a framework. UsageError if there is none."""
    if name not in WORKLOADS:
        raise UsageError(f"--workload={name} is unknown; choose from {', '.join(WORKLOADS)}")
    if not _there(name, framework):
        others = [other for other in WORKLOADS if _there(other, framework)]
        raise UsageError(f"--workload={name} has no form in {framework}; these have: {', '.join(others)}")
    return f"{__name__}.{WORKLOADS[name][0]}.{framework}"


def make(name: str, framework: str = "pytorch") -> spec.Workload:
    """The workload `name`, its data not yet loaded. UsageError if there is none in this framework."""
    return getattr(importlib.import_module(module_of(name, framework)), WORKLOADS[name][1])()


def _there(name: str, framework: str) -> bool:
    return importlib.util.find_spec(f"{__name__}.{WORKLOADS[name][0]}.{framework}") is not None

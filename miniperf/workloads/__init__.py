"""The miniature workloads by name. Each is imported only when asked for, since each brings its own data packages."""

import importlib

from miniperf import spec
from miniperf.errors import UsageError

WORKLOADS = {
    "mini_criteo1tb": ("criteo1tb", "MiniCriteo1TbWorkload"),
    "mini_imagenet_vit": ("imagenet_vit", "MiniImagenetVitWorkload"),
    "mini_wmt": ("wmt", "MiniWmtWorkload"),
}


def make(name: str) -> spec.Workload:
    """The workload `name`, its data not yet loaded. UsageError for an unknown name."""
    if name not in WORKLOADS:
        raise UsageError(f"--workload={name} is unknown; choose from {', '.join(WORKLOADS)}")
    module, cls = WORKLOADS[name]
    return getattr(importlib.import_module(f"{__name__}.{module}"), cls)()

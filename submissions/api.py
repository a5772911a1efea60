"""The one place that knows which AlgoPerf API a submission runs under. It needs no framework by itself.

`spec` is that of the harness that is running: the official `algoperf` package or miniperf, this repository's stand-in
with the same names. A harness imports its API before it imports a submission, so the loaded modules tell. Where neither
is loaded (a notebook, a test), whichever is installed serves. The stand-in comes first because it imports in no time.
"""

import importlib
import importlib.util
import sys


def _package() -> str:
    for name in ("algoperf", "miniperf"):
        if loaded := sys.modules.get(f"{name}.spec"):
            return loaded.__name__.partition(".")[0]  # miniperf's is there under the other name too, for a while
    return next((name for name in ("miniperf", "algoperf") if importlib.util.find_spec(name)), "algoperf")


PACKAGE = _package()
spec = importlib.import_module(f"{PACKAGE}.spec")

__all__ = ["PACKAGE", "spec"]

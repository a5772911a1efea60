"""Scripts as processes of their own."""

import subprocess

from tests.support import ROOT
from tests.support.warm_python import python


def run(script: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """What `python -m scripts.<script>` says, from the repository's root."""
    command = [python(), "-m", f"scripts.{script}", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

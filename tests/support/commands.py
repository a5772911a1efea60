"""Scripts as processes of their own."""

import subprocess
import sys

from tests.support import ROOT


def run(script: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """What `python -m scripts.<script>` says, from the repository's root."""
    command = [sys.executable, "-m", f"scripts.{script}", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

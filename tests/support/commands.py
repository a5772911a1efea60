"""Scripts as processes of their own."""

import subprocess

from launching.rehearsal import drive
from tests.support import ROOT
from tests.support.warm_python import python


def run(script: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """What `python -m scripts.<script>` says, from the repository's root."""
    command = [python(), "-m", f"scripts.{script}", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def ended(process: subprocess.Popen, seconds: float) -> int:
    """The exit status; 124, as of `timeout`, where it is not over by then. It is killed with all that it started.

    Its output must go to a file: `subprocess.run` waits for the ranks that hold a pipe, for ever.
    """
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return 124
    finally:
        if process.poll() is None:
            drive.kill(process.pid)
            process.wait()

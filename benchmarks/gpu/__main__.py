"""Averaging on this machine's GPU: its tests, then what it costs there, as a page with tables and a picture.

    python -m benchmarks.gpu --out=docs/results/gpu

Writes <out>/<device>.md and <device>_overlap.png, after every section, so that a stopped run keeps what it has; what
the page has of other sections stays. Takes some five minutes on an H100. It needs a Python with torch, numpy, tqdm,
absl-py and matplotlib, pytest and hypothesis for the tests, no installation of this repository and no network. Without
CUDA it does all the same on the processor, small: to see that it runs.
"""

import argparse
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from benchmarks.gpu import machine, step, updates
from benchmarks.gpu.sizes import FULL, SMALL, Scale
from benchmarks.timing import device_name

ROOT = Path(__file__).parents[2]


def marked() -> list[str]:
    """The test files with the marker `gpu`; others import packages that need not be there."""
    return sorted(str(path) for path in (ROOT / "tests").rglob("test_*.py") if "pytest.mark.gpu" in path.read_text())


def tests() -> str:
    """Those with the marker `gpu`."""
    files = marked()
    if not files:  # pytest would take all
        raise RuntimeError(f"no test below {ROOT / 'tests'} has the marker gpu")
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-rf", "--tb=short", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-2000:], file=sys.stderr)
        failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        raise RuntimeError("; ".join([*failed, *lines[-1:]]))
    return f"`pytest -m gpu`: {lines[-1]}"


def sections(scale: Scale, picture: Path) -> dict[str, tuple[str, Callable[[], str]]]:
    """By name: the title and what makes the text."""
    return {
        "tests": ("Tests", tests),
        "updates": ("Updates against the memory's bandwidth and other libraries", lambda: updates.updates(scale)),
        "kernels": ("What an update launches", lambda: updates.kernels(scale)),
        "overlap": ("Copies beside training", lambda: step.overlap(scale, picture)),
        "swap": ("Swaps", lambda: updates.swap(scale)),
        "memory": ("Memory", lambda: updates.memory(scale)),
        "growth": ("Memory after many swaps", lambda: updates.growth(scale)),
        "blocks": ("The size of a block", lambda: updates.block_sizes(scale)),
        "nadamw": ("NadamW", lambda: updates.nadamw(scale)),
        "criteo": ("A window of criteo1tb's size", lambda: updates.criteo(scale)),
        "step": ("A training step", lambda: step.step(scale)),
        "compiled": ("A training step, compiled", lambda: step.step(scale, compiled=True)),
    }


def _sections_of(page: Path, head: str) -> dict[str, str]:
    """What a page has by title, if it is of this machine with this software."""
    if not page.exists():
        return {}
    found, *parts = page.read_text().split("\n## ")
    if found.strip() != head:
        return {}
    return {title: text.strip() for title, _, text in (part.partition("\n") for part in parts)}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("docs/results/gpu"), help="folder (default: docs/results/gpu)")
    parser.add_argument("--small", action="store_true", help="small sizes, as without CUDA: to see that it runs")
    parser.add_argument("--sections", help="some of them, with commas between (default: all)")
    arguments = parser.parse_args()
    scale = SMALL if arguments.small or not machine.ON_CUDA else FULL
    picture = arguments.out / f"{machine.slug()}_overlap.png"
    known = sections(scale, picture)
    chosen = arguments.sections.split(",") if arguments.sections else list(known)
    if unknown := [name for name in chosen if name not in known]:
        parser.error(f"--sections={','.join(unknown)}: there are {','.join(known)}")
    if not machine.ON_CUDA and not arguments.sections:
        chosen.remove("compiled")  # a minute of compiling shows nothing of this library
    arguments.out.mkdir(parents=True, exist_ok=True)
    page = arguments.out / f"{machine.slug()}.md"
    head = [f"# Averaging on {device_name()}", "", "    python -m benchmarks.gpu", "", machine.described()]
    if scale is SMALL:
        head += ["", "Small sizes: to see that it runs. The numbers mean nothing."]
    texts = _sections_of(page, "\n".join(head))
    failures = 0
    for name in tqdm(chosen, unit="section", disable=None):
        title, make = known[name]
        start = time.perf_counter()
        try:
            made = make()
        except Exception as error:  # the others are still worth having
            failures += 1
            traceback.print_exc()
            made = f"failed: {type(error).__name__}: {' '.join(str(error).split())}"
        machine.free()
        texts[title] = made
        found = [f"## {title}\n\n{texts[title]}" for title, _ in known.values() if title in texts]
        page.write_text("\n\n".join(["\n".join(head), *found]) + "\n")
        tqdm.write(f"{name}: {time.perf_counter() - start:.1f} s")
    print(f"written: {page}" + (f"; {failures} sections failed" if failures else ""))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""Write the page of the evidence, its tables and figures, from the numbers by seed.

    python -m scripts.evidence_page                             # docs/results/evidence from its data folder
    python -m scripts.evidence_page --collect=runs/evidence     # first take over what scripts.evidence has finished
    python -m scripts.evidence_page --restore=runs/evidence     # a fresh clone goes on from what is committed
    python -m scripts.evidence_page --study=published --folder=docs/results/published_submissions

`--collect` replaces the numbers in <folder>/data by those of all finished runs there; runs under way are left out.
Then, as without it, <folder>/README.md and its figures are made from <folder>/data alone, and say what was not run.

`--restore` is for a fresh clone that adds runs: scripts.evidence does not run anew what is committed, and collecting
gives all of it again.
"""

import importlib
from pathlib import Path

from absl import flags

from scripts.start import start
from weight_averaging.errors import UsageError
from weight_averaging.interrupts import importing

FLAGS = flags.FLAGS

PAGES = {"suite": "page", "published": "published_page"}  # modules of analysis.evidence

flags.DEFINE_enum("study", "suite", list(PAGES), "Page to write: of the suite, or of the published submissions.")
flags.DEFINE_string("folder", "docs/results/evidence", "Folder of the page, with the numbers in `data` there.")
flags.DEFINE_string("collect", None, "Folder with results of scripts.evidence, which are taken over first.")
flags.DEFINE_string("restore", None, "Folder into which the numbers go as finished runs; no page is written.")


def run() -> None:
    with importing():  # here, since a wrong flag is told without pandas and matplotlib
        from analysis.evidence import data

        page = importlib.import_module(f"analysis.evidence.{PAGES[FLAGS.study]}")
    folder = Path(FLAGS.folder)
    if FLAGS.restore is not None:
        if FLAGS.collect is not None:
            raise UsageError("--collect and --restore are opposite ways: give one of them")
        if not FLAGS.restore:
            raise UsageError("--restore= names no folder: runs/evidence, say")
        try:
            runs, searches = data.restore(folder / "data", Path(FLAGS.restore))
        except OSError as error:
            raise UsageError(
                f"--restore={FLAGS.restore}: {error.strerror}; give a folder that can be written"
            ) from None
        print(f"{FLAGS.restore}: {runs} runs put there, {searches} of searches")
        return
    if FLAGS.collect is not None:
        runs, searches = data.collect(Path(FLAGS.collect), folder / "data")
        print(f"{folder / 'data'}: {runs} runs, {searches} of searches")
    for path in page.write(data.load(folder / "data"), folder):
        print(f"written: {path}")


if __name__ == "__main__":
    start(run)

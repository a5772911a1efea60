"""Write the page of the evidence, its tables and figures, from the numbers by seed.

    python -m scripts.evidence_page                             # docs/results/evidence from its data folder
    python -m scripts.evidence_page --collect=runs/evidence     # first take over what scripts.evidence has finished
    python -m scripts.evidence_page --study=published --folder=docs/results/published_submissions

`--collect` replaces the numbers in <folder>/data by those of all finished runs there; runs under way are left out.
Then, as without it, <folder>/README.md and its figures are made from <folder>/data alone, and say what was not run.
"""

from pathlib import Path

from absl import flags

from analysis.evidence import data, page, published_page
from scripts.start import start

FLAGS = flags.FLAGS

PAGES = {"suite": page.write, "published": published_page.write}

flags.DEFINE_enum("study", "suite", list(PAGES), "Study that the page is of: the suite, or the published submissions.")
flags.DEFINE_string("folder", "docs/results/evidence", "Folder of the page, with the numbers in `data` there.")
flags.DEFINE_string("collect", None, "Folder with results of scripts.evidence, which are taken over first.")


def run() -> None:
    folder = Path(FLAGS.folder)
    if FLAGS.collect is not None:
        runs, searches = data.collect(Path(FLAGS.collect), folder / "data")
        print(f"{folder / 'data'}: {runs} runs, {searches} of searches")
    for path in PAGES[FLAGS.study](data.load(folder / "data"), folder):
        print(f"written: {path}")


if __name__ == "__main__":
    start(run)

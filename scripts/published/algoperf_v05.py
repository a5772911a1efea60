"""What the published AlgoPerf v0.5 logs say about weight averaging: the tables and figures of that analysis.

    python -m scripts.published.algoperf_v05 --logs=algoperf_v05_external.tar.xz

Compares lawa_queue and lawa_ema with the NadamW baseline, and writes tables.md and figures below docs/results. The
reading of them is in the README.md beside them.
"""

from absl import flags

from scripts.start import start
from weight_averaging.interrupts import importing

FLAGS = flags.FLAGS

flags.DEFINE_string(
    "logs", None, "The published logs of the external-tuning ruleset: folder or archive.", required=True
)
flags.DEFINE_string("out", "docs/results/published_v05", "Folder for tables.md and the figures.")


def run() -> None:
    with importing():  # here, since a wrong flag is told without pandas and matplotlib
        from analysis.published import algoperf_v05
    algoperf_v05.write(FLAGS.logs, FLAGS.out)


if __name__ == "__main__":
    start(run)

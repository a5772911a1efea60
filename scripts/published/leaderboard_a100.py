"""What the current AlgoPerf leaderboard (4 x A100, self-tuning) says: the tables and figures of that analysis.

    python -m scripts.published.leaderboard_a100 --logs=algoperf_a100_self_tuning.tar.xz

It says where in training the targets lie, how long an update takes, and who is first where. It also says what fewer
steps to target would score. The tables and figures are written below docs/results. The README.md beside them says what
they mean.
"""

from absl import flags

from scripts.start import start
from weight_averaging.interrupts import importing

FLAGS = flags.FLAGS

flags.DEFINE_string("logs", None, "The published logs: folder or archive.", required=True)
flags.DEFINE_string("out", "docs/results/leaderboard_a100", "Folder for tables.md and the figures.")
flags.DEFINE_string(
    "ratios",
    "docs/results/leaderboard_a100/paper_ratios.csv",
    "The paper's steps to target over NadamW's.",
)


def run() -> None:
    with importing():  # here, since a wrong flag is told without pandas and matplotlib
        from analysis.published import leaderboard_a100
    leaderboard_a100.write(FLAGS.logs, FLAGS.out, FLAGS.ratios)


if __name__ == "__main__":
    start(run)

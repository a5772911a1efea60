r"""Look through a submission for what goes wrong under the official harness, or on the way to its leaderboard.

    python -m scripts.check_submission --submission_path=dist/mine/submission.py \
      --tuning_search_space=dist/mine/tuning_search_space.json --submission_info=dist/mine/submission_info.yml
    python -m scripts.check_submission --submission_info=dist/mine.pull_request.md

Prints every finding with its file and line; the exit status is 1 if there are any. Submissions of this repository
import its library by absolute names, which `scripts.bundle` makes relative: check the bundle.
"""

import sys
from pathlib import Path

from absl import flags

from launching import check_code, check_space, submission_info
from scripts.start import start
from weight_averaging.errors import UsageError

FLAGS = flags.FLAGS

flags.DEFINE_string("submission_path", None, "File of the submission (.py).")
flags.DEFINE_string("tuning_search_space", None, "File of its search space (JSON).")
flags.DEFINE_string("submission_info", None, "File of its submission_info.yml, or with the text of the pull request.")


def run() -> None:
    if not any((FLAGS.submission_path, FLAGS.tuning_search_space, FLAGS.submission_info)):
        raise UsageError("give --submission_path, --tuning_search_space, --submission_info, or several of them")
    findings = check_code.check(Path(FLAGS.submission_path)) if FLAGS.submission_path else []
    findings += check_space.check(Path(FLAGS.tuning_search_space)) if FLAGS.tuning_search_space else []
    findings += submission_info.check(Path(FLAGS.submission_info)) if FLAGS.submission_info else []
    looked_at = [FLAGS.submission_path, FLAGS.tuning_search_space, FLAGS.submission_info]
    print(*findings or [f"nothing found in {', '.join(path for path in looked_at if path)}"], sep="\n")
    sys.exit(bool(findings))


if __name__ == "__main__":
    start(run)

"""Write a submission as the benchmark's repository takes it, and the text of the pull request.

    python -m scripts.bundle --submission=lawa --authors="A. Name, B. Name" --affiliations="Some Place"
    python -m scripts.bundle --submission=lawa --ruleset=self-tuning --point=3 --authors="..." --affiliations="..."

The folder goes to submissions/external_tuning/<name>/ or submissions/self_tuning/<name>/ of
mlcommons/submissions_algorithms. It is checked as `scripts.check_submission` does before it is left there.
"""

import shutil
from pathlib import Path

from absl import flags

from launching import bundle, check_code, check_space, submission_info
from miniperf.errors import UsageError
from scripts.start import start

FLAGS = flags.FLAGS
FRAMEWORKS = {"pytorch": "PyTorch", "jax": "JAX"}  # as the leaderboard writes them

flags.DEFINE_string("submission", None, "A folder of submissions/<framework>.", required=True)
flags.DEFINE_enum("framework", "pytorch", list(FRAMEWORKS), "Framework of the submission.")
flags.DEFINE_string(
    "name", None, "Of the folder; default: weight_averaging_<submission>, with _jax and _self_tuning where they apply."
)
flags.DEFINE_enum("ruleset", "external", list(submission_info.FOLDERS), "The tuning ruleset.")
flags.DEFINE_string("tuning_search_space", None, "Default: tuning_search_spaces/<submission>.json.")
flags.DEFINE_integer("point", None, "Under self-tuning: the point of the search space, from 1, that is trained with.")
flags.DEFINE_string("output_dir", "dist", "Where the folder and the text are written.")
flags.DEFINE_string("authors", None, "Of the submission.", required=True)
flags.DEFINE_string("affiliations", None, "Of the authors.", required=True)
flags.DEFINE_string("version", "1.0", "Of the submission.")
ROOT = Path(__file__).resolve().parent.parent


def run() -> None:
    suffix = "" if FLAGS.framework == "pytorch" else f"_{FLAGS.framework}"
    suffix += "" if FLAGS.ruleset == "external" else "_self_tuning"
    submission = f"{FLAGS.framework}/{FLAGS.submission}"
    name = FLAGS.name or f"weight_averaging_{FLAGS.submission}{suffix}"
    folder = Path(FLAGS.output_dir) / name
    space = Path(FLAGS.tuning_search_space or ROOT / f"tuning_search_spaces/{FLAGS.submission}.json")
    if not space.is_file():
        raise UsageError(f"--tuning_search_space: there is no {space}")
    if (FLAGS.point is None) != (FLAGS.ruleset == "external"):
        raise UsageError("--point says what --ruleset=self-tuning trains with: give it there, and only there")
    fields = {
        "submission_name": name,
        "submission_folder": name,
        "authors": FLAGS.authors,
        "affiliations": FLAGS.affiliations,
        "version": FLAGS.version,
        "ruleset": FLAGS.ruleset,
        "framework": FRAMEWORKS[FLAGS.framework],
        "description": bundle.description(ROOT, submission),
    }
    text = submission_info.pull_request(fields)
    files = bundle.write(ROOT, submission, space, FLAGS.point, folder)
    info = folder / submission_info.NAME
    info.write_text(submission_info.text(fields))
    findings = check_code.check(folder / "submission.py") + submission_info.check(info)
    if FLAGS.ruleset == "external":
        findings += check_space.check(folder / "tuning_search_space.json")
    if findings:
        shutil.rmtree(folder)
        raise UsageError("not fit to be handed in:\n" + "\n".join(map(str, findings)))
    (folder.parent / f"{name}.pull_request.md").write_text(text)
    print(*files, info, folder.parent / f"{name}.pull_request.md", sep="\n")


if __name__ == "__main__":
    start(run, UsageError)

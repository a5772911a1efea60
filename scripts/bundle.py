"""Write a submission as the benchmark's repository takes it, and the text of the pull request.

    python -m scripts.bundle --submission=lawa --authors="A. Name, B. Name" --affiliations="Some Place"
    python -m scripts.bundle --submission=lawa_self --authors="..." --affiliations="..."

A submission without a search space is for the self-tuning ruleset. The folder goes to submissions/external_tuning/ or
submissions/self_tuning/ of mlcommons/submissions_algorithms. It is checked as `scripts.check_submission` does before it
is left there.
"""

import importlib
import shutil
from pathlib import Path

from absl import flags

from launching import bundle, check_code, check_space, submission_info
from scripts.start import start
from weight_averaging.errors import UsageError

FLAGS = flags.FLAGS
FRAMEWORKS = {"pytorch": "PyTorch", "jax": "JAX"}  # as the leaderboard writes them

flags.DEFINE_string("submission", None, "A folder of submissions/<framework>.", required=True)
flags.DEFINE_enum("framework", "pytorch", list(FRAMEWORKS), "Framework of the submission.")
flags.DEFINE_string("name", None, "Of the folder; default: weight_averaging_<submission>, in JAX with _jax.")
flags.DEFINE_string("tuning_search_space", None, "Default: tuning_search_spaces/<submission>.json, if there is one.")
flags.DEFINE_string("output_dir", "dist", "Where the folder and the text are written.")
flags.DEFINE_string("authors", None, "Of the submission.", required=True)
flags.DEFINE_string("affiliations", None, "Of the authors.", required=True)
flags.DEFINE_string("version", "1.0", "Of the submission.")
ROOT = Path(__file__).resolve().parent.parent


def _search_space() -> Path | None:
    space = Path(FLAGS.tuning_search_space or ROOT / f"tuning_search_spaces/{FLAGS.submission}.json")
    if FLAGS.tuning_search_space is not None and not space.is_file():
        raise UsageError(f"--tuning_search_space: there is no {space}")
    return space if space.is_file() else None


def run() -> None:
    suffix = "" if FLAGS.framework == "pytorch" else f"_{FLAGS.framework}"
    submission = f"{FLAGS.framework}/{FLAGS.submission}"
    name = FLAGS.name or f"weight_averaging_{FLAGS.submission}{suffix}"
    folder = Path(FLAGS.output_dir) / name
    space, own_point = _search_space(), bundle.has_point(ROOT, submission)
    if space is None and not own_point:
        raise UsageError(f"--tuning_search_space: there is no tuning_search_spaces/{FLAGS.submission}.json")
    if space is not None and own_point:
        raise UsageError(f"--tuning_search_space={space}: {FLAGS.submission} has hyperparameters of its own")
    fields = {
        "submission_name": name,
        "submission_folder": name,
        "authors": FLAGS.authors,
        "affiliations": FLAGS.affiliations,
        "version": FLAGS.version,
        "ruleset": "self-tuning" if own_point else "external",
        "framework": FRAMEWORKS[FLAGS.framework],
        "description": bundle.description(ROOT, submission),
    }
    text = submission_info.pull_request(fields)
    files = bundle.write(ROOT, submission, space, folder)
    optimizer = importlib.import_module(f"submissions.{submission.replace('/', '.')}.submission").recipe.optimizer
    if optimizer.requirement:
        path = folder / "requirements.txt"
        path.write_text(f"# The optimizer itself, {optimizer.settings.name}.\n{optimizer.requirement}\n")
        files.append(path)
    info = folder / submission_info.NAME
    info.write_text(submission_info.text(fields))
    findings = check_code.check(folder / "submission.py") + submission_info.check(info)
    if space is not None:
        findings += check_space.check(folder / submission_info.SPACE)
    if findings:
        shutil.rmtree(folder)
        raise UsageError("not fit to be handed in:\n" + "\n".join(map(str, findings)))
    (folder.parent / f"{name}.pull_request.md").write_text(text)
    print(*files, info, folder.parent / f"{name}.pull_request.md", sep="\n")


if __name__ == "__main__":
    start(run)

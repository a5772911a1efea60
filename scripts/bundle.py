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

from launching import bundle, check_code, check_space, own_submissions, submission_info
from scripts.start import start
from weight_averaging.errors import UsageError

FLAGS = flags.FLAGS
FRAMEWORKS = {"pytorch": "PyTorch", "jax": "JAX"}  # as the leaderboard writes them

flags.DEFINE_string("submission", None, "Name of the submission, a folder of submissions/<framework>.", required=True)
flags.DEFINE_enum("framework", "pytorch", list(FRAMEWORKS), "Framework of the submission.")
flags.DEFINE_string(
    "name", None, "Name of the folder; default: weight_averaging_<submission>, and in JAX with _jax behind."
)
flags.DEFINE_string(
    "tuning_search_space",
    None,
    "File of the search space (JSON); default: tuning_search_spaces/<submission>.json, if it is there.",
)
flags.DEFINE_string("output_dir", "dist", "Folder into which the bundle and the text are written.")
flags.DEFINE_string("authors", None, "Names of the authors, with commas between.", required=True)
flags.DEFINE_string("affiliations", None, "Affiliations of the authors, with commas between.", required=True)
flags.DEFINE_string("version", "1.0", "Version of the submission.")
ROOT = Path(__file__).resolve().parent.parent


def _search_space() -> Path | None:
    space = Path(FLAGS.tuning_search_space or ROOT / f"tuning_search_spaces/{FLAGS.submission}.json")
    if FLAGS.tuning_search_space is not None and not space.is_file():
        raise UsageError(f"--tuning_search_space: there is no {space}")
    return space if space.is_file() else None


def run() -> None:
    own_submissions.path_of(FLAGS.submission, FLAGS.framework, root=ROOT)
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
    request = folder.parent / f"{name}.pull_request.md"
    request.write_text(text)
    kind = "self_tuning" if own_point else "external_tuning"
    print(f"{folder}: {len(files) + 1} files, nothing found to be wrong")
    print(f"{request}: the text of the pull request")
    print(f"next: copy {folder} to submissions/{kind}/ of mlcommons/submissions_algorithms (docs/official.md)")


if __name__ == "__main__":
    start(run)

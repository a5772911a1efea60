r"""Average a submission that somebody else wrote: evaluations see LAWA, an EMA or a growing average, training stays.

    python -m scripts.average_submission --submission_path=theirs/submission.py --averaging=lawa \
      --tuning_search_space=theirs/tuning_search_space.json --out=dist/theirs_lawa
    python -m scripts.average_submission --submission_path=theirs/submission.py --averaging=ema --out=dist/theirs_ema

The folder has their file in `base/`, a dozen lines in `submission.py`, and the library beside them. Their file is
unchanged but for imports of its own modules by absolute names, which become relative and are reported. The folder is
checked as scripts.check_submission does, and can be handed in or run:

    python -m scripts.run --submission_path=dist/theirs_lawa/submission.py --workload=mini_criteo1tb \
      --tuning_search_space=dist/theirs_lawa/tuning_search_space.json

Without a search space it is one for the self-tuning ruleset. An update is a call of `update_params`, as the benchmark
counts; --calls_per_update says how many calls of a submission that accumulates gradients train once.
"""

import shutil
from pathlib import Path

from absl import flags

from launching import average_submission, check_code, check_space, submission_info
from scripts.start import start
from weight_averaging.errors import UsageError

FLAGS = flags.FLAGS
ROOT = Path(__file__).resolve().parent.parent
FRAMEWORKS = {"pytorch": "PyTorch", "jax": "JAX"}

flags.DEFINE_string("submission_path", None, "File of the submission that is to be averaged (.py).", required=True)
flags.DEFINE_enum(
    "averaging", "lawa", sorted(average_submission.AVERAGES), "Average that evaluations see: lawa, ema or growing."
)
flags.DEFINE_enum("framework", None, list(FRAMEWORKS), "Framework of the submission; default: the one that it imports.")
flags.DEFINE_string("out", None, "Folder to write, which must not be there yet.", required=True)
flags.DEFINE_string(
    "tuning_search_space", None, "File of its search space (JSON); default: none, it is taken for self-tuning."
)
flags.DEFINE_float("averaging_horizon", None, "Share of step_hint that LAWA or an EMA covers, in (0, 1]; default: .01.")
flags.DEFINE_integer("averaging_window", None, "Number of snapshots in LAWA or an EMA; default: 20.")
flags.DEFINE_float("averaging_share", None, "Share of the updates so far that a growing average covers; default: .15.")
flags.DEFINE_integer(
    "calls_per_update",
    1,
    "Number of calls of update_params that train once, for a submission that accumulates gradients.",
)
flags.DEFINE_boolean(
    "on_top", False, "Average a submission that brings other weights to evaluations itself, on top of those."
)
flags.DEFINE_string("authors", None, "Names of the authors of the averaged submission; default: those of the base.")
flags.DEFINE_string("affiliations", None, "Affiliations of those authors; default: those of the base.")


def run() -> None:
    base = average_submission.read(Path(FLAGS.submission_path), FLAGS.framework)
    if FLAGS.framework not in (None, base.framework):
        raise UsageError(f"--submission_path={FLAGS.submission_path} needs --framework={base.framework}")
    folder = Path(FLAGS.out)
    space = Path(FLAGS.tuning_search_space) if FLAGS.tuning_search_space else None
    if folder.exists():
        raise UsageError(f"--out={folder} exists; remove it or choose another")
    for problem in submission_info.problems("submission_folder", folder.name):
        raise UsageError(f"--out={folder}: {problem}")
    values = _hyperparameters()
    options = {"calls_per_update": FLAGS.calls_per_update} if FLAGS.calls_per_update != 1 else {}
    options |= {"on_top": True} if FLAGS.on_top else {}
    theirs = base.info.get("authors", "")
    fields = {
        "submission_name": folder.name,
        "submission_folder": folder.name,
        "authors": FLAGS.authors or theirs or "unknown",
        "affiliations": FLAGS.affiliations or base.info.get("affiliations") or "unknown",
        "version": "1.0",
        "ruleset": "external" if space else "self-tuning",
        "framework": FRAMEWORKS[base.framework],
        "description": f"{base.name}"
        + (f" by {theirs}" if theirs else "")
        + f", evaluated at {average_submission.AVERAGES[FLAGS.averaging]}",
    }
    info, text = folder / submission_info.NAME, submission_info.text(fields)
    files = average_submission.write(ROOT, base, FLAGS.averaging, values, space, folder, options)
    info.write_text(text)
    findings = check_code.check(folder / "submission.py") + submission_info.check(info)
    findings += check_space.check(folder / submission_info.SPACE) if space else []
    of_base = {"base", submission_info.SPACE}
    in_base = [finding for finding in findings if of_base.intersection(Path(finding.path).parts)]
    if own := [finding for finding in findings if finding not in in_base]:
        shutil.rmtree(folder)
        raise UsageError("not fit to be handed in:\n" + "\n".join(map(str, own)))
    for finding in in_base:
        print(f"note, of the base itself: {finding}")
    if "unknown" in fields.values():
        print("note: authors or affiliations are unknown: give --authors and --affiliations before you hand in")
    changed = average_submission.changed(base, folder)
    for path in changed:
        print(f"note: {path} imports its own modules by relative names now, and is unchanged else")
    print(f"{folder}: {len(files) + 1} files; the base is in {folder / 'base'}{'' if changed else ', unchanged'}")
    tuning = f"--tuning_search_space={folder / submission_info.SPACE}" if space else "--tuning_ruleset=self"
    request = folder.parent / f"{folder.name}.pull_request.md"
    request.write_text(submission_info.pull_request(fields))
    print(f"{request}: the text of the pull request with which it is handed in (docs/official.md#handing-in)")
    print(
        f"next: python -m scripts.run --submission_path={folder / 'submission.py'} {tuning} "
        f"--framework={base.framework} --workload=mini_criteo1tb"
    )


def _hyperparameters() -> dict[str, float]:
    names = {name for values in average_submission.HYPERPARAMETERS.values() for name in values}
    given = {name: getattr(FLAGS, name) for name in sorted(names) if getattr(FLAGS, name) is not None}
    usual = average_submission.HYPERPARAMETERS[FLAGS.averaging]
    if unknown := [name for name in given if name not in usual]:
        raise UsageError(f"--{unknown[0]}: --averaging={FLAGS.averaging} takes {' and '.join(usual)}")
    return {**usual, **given}


if __name__ == "__main__":
    start(run)

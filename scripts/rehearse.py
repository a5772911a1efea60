"""Rehearse runs under the official harness on small data, before the real data is downloaded.

    python -m scripts.rehearse --submission=lawa --workload=ogbg                 on all GPUs
    python -m scripts.rehearse --submission=lawa --workload=ogbg --gpus=0        on the CPU
    python -m scripts.rehearse --submission=lawa,ema --framework=pytorch,jax --all
    python -m scripts.rehearse --submission=lawa --workload=ogbg --engine=docker     in the image; slurm: as one job
    python -m scripts.rehearse --submission_path=mine/submission.py --tuning_search_space=mine/space.json --workload=wmt

A rehearsal writes a small data set in the official layout (once, into --data_dir). It starts the harness's own runner
with the command of a real run, kills it after a checkpoint, and resumes it. Then it looks at what happened:

    data read            the harness's input pipeline gave batches
    updates              every update changed the weights, and left them finite
    evaluations          there was one after every update
    average              evaluations saw the average that the submission promises, to 1e-6 of a reference in float64
    raw weights back     training went on from the raw weights afterwards
    checkpoint           it was restored with the weights that were evaluated
    end                  killed, resumed, ended
    logs                 are read as those of a real run

It says how long the parts took and how much memory. Another author's submission does not say what it averages. Then the
result says at how many evaluations the weights were other than the raw ones.

Sizes are cut (launching/rehearsal/sizes.py), among them the step hint, so that an average over 1 % of training is full
after three updates. On GPUs nothing else is changed; --full_batch takes the official batches, halved until they fit. It
estimates the hours of a real entry where they fit as they are. On a CPU the harness's own assumptions are replaced too:
the number of GPUs and ImageNet's prefetching. There criteo1tb is its small variant, the language model is cut to two
layers, and translations have 16 tokens.

Results are in --out, a folder a rehearsal, with rehearsals.html and rehearsals.md of all that are there. A rehearsal
that is there is not made again: after a kill the same command goes on. So does a Slurm job that is requeued. With
--again all are made anew.
"""

import os
import shlex
import sys
from pathlib import Path

from absl import flags

from launching import engines, official, own_submissions
from launching.official_workloads import WORKLOADS, base_name
from launching.rehearsal import drive, table
from launching.rehearsal.drive import Cell, Place
from miniperf import frameworks, search, submission
from scripts.start import start
from weight_averaging.atomic_file import replacing
from weight_averaging.errors import UsageError

FLAGS = flags.FLAGS
NOTES = [
    "Without device GiB it was on a CPU, where the number of GPUs by which queues divide, ImageNet's prefetching, the "
    "language model's size and the length of translations are replaced, and criteo1tb is its small variant. Seconds "
    "and memory say little of a GPU."
]

flags.DEFINE_list("submission", [], "Names of submissions, folders of submissions/<framework>, with commas between.")
flags.DEFINE_string("submission_path", None, "File of any other submission, in place of --submission.")
flags.DEFINE_string(
    "tuning_search_space",
    None,
    "File of its search space (JSON), whose first point is used; default: none, it tunes itself.",
)
flags.DEFINE_list("workload", [], "Names of official workloads or of variants, with commas between.")
flags.DEFINE_boolean("all", False, "Rehearse on all workloads.")
flags.DEFINE_list("framework", ["pytorch"], "Framework: pytorch, jax, or both with a comma between.")
flags.DEFINE_integer("gpus", None, "Number of GPUs; default: all there are. 0 rehearses on the CPU.", lower_bound=0)
flags.DEFINE_integer("ranks", 1, "Number of processes that stand for GPUs, with --gpus=0 in PyTorch.", lower_bound=1)
flags.DEFINE_boolean("full_batch", False, "Use the official batch sizes, or the halves of them that fit.")
flags.DEFINE_string(
    "data_dir",
    "~/.cache/weight_averaging_rehearsal",
    "Root folder of the small data sets, which are written there once.",
)
flags.DEFINE_string("out", "runs/rehearsal", "Folder of the results, with one folder a rehearsal.")
flags.DEFINE_string(
    "harness_path", None, "Folder with the sources of the official harness, to be used in place of the installed one."
)
flags.DEFINE_enum(
    "engine",
    "local",
    ["local", "docker", "slurm"],
    "Place where the rehearsal runs: this machine, the Docker image, or a job of Slurm.",
)
flags.DEFINE_string(
    "sbatch_args", "", "Further arguments for sbatch, with --engine=slurm: '--partition=gpu --time=4:00:00'."
)
flags.DEFINE_boolean("dry_run", False, "Print the command of Docker or Slurm, with --engine. Nothing is started.")
flags.DEFINE_boolean("again", False, "Rehearse anew where results are there already.")


def cells() -> list[Cell]:
    """What the flags ask for. UsageError for what cannot be."""
    if not FLAGS.all and not FLAGS.workload:
        raise UsageError(f"give --workload or --all; the workloads are {', '.join(WORKLOADS)}")
    if bool(FLAGS.submission) == bool(FLAGS.submission_path):
        raise UsageError("give either --submission or --submission_path")
    for workload in FLAGS.workload:
        base_name(workload)
    for framework in FLAGS.framework:
        frameworks.check(framework)
        for name in FLAGS.submission:
            own_submissions.path_of(name, framework)
    here = FLAGS.engine == "local"
    gpus = official.gpus_found(FLAGS.gpus) if here else FLAGS.gpus or 0
    if FLAGS.ranks > 1 and (gpus or FLAGS.framework != ["pytorch"]):
        raise UsageError("--ranks is for --gpus=0 in PyTorch; on GPUs there is a rank for each")
    if FLAGS.full_batch and FLAGS.submission and here:
        for workload in WORKLOADS if FLAGS.all else FLAGS.workload:
            official.check_batch_size(workload, gpus or FLAGS.ranks, "gpus" if gpus else "ranks")
    found = []
    for workload in WORKLOADS if FLAGS.all else FLAGS.workload:
        for framework in FLAGS.framework:
            for name, path, space in _submissions(framework, workload):
                trials = search.trials("self" if space is None else "external", space, 1)
                official.check_trials(path, space, trials, workload, framework)
                found.append(
                    Cell(
                        workload=workload,
                        framework=framework,
                        submission=name,
                        submission_path=path,
                        search_space=space,
                        gpus=gpus,
                        ranks=FLAGS.ranks,
                        full_batch=FLAGS.full_batch,
                    )
                )
    return found


def _submissions(framework: str, workload: str) -> list[tuple[str, str, str | None]]:
    """Name, path and search space of each."""
    if FLAGS.submission_path:
        path = str(submission.check_path(FLAGS.submission_path))
        return [(Path(path).parent.name or "submission", path, FLAGS.tuning_search_space)]
    found = []
    for name in FLAGS.submission:
        path = own_submissions.path_of(name, framework)
        found.append((name, str(path), search.default_path(name, workload, True)))
    return found


def run() -> None:
    asked = cells()
    if FLAGS.engine != "local":
        hand_over()
        return
    if FLAGS.dry_run:
        raise UsageError("--dry_run is for --engine=docker and --engine=slurm")
    harness = Path(FLAGS.harness_path).expanduser().absolute() if FLAGS.harness_path else None
    out = Path(FLAGS.out).expanduser().absolute()
    place = Place(data=Path(FLAGS.data_dir).expanduser().absolute(), out=out, harness_path=harness)
    results = []
    for cell in asked:
        result = None if FLAGS.again else drive.result_of(place, cell)
        if result is None:
            print(f"{cell.name} ...", flush=True)
            result = drive.rehearse(place, cell)
        results.append(result)
        print(table.text([result]), flush=True)
        every = drive.results_in(place)
        try:
            for name, text in {"html": table.page(every, NOTES), "md": table.markdown(every) + "\n"}.items():
                with replacing(out / f"rehearsals.{name}") as file:
                    file.write(text.encode())
        except OSError as error:
            raise UsageError(f"--out={out}: {error.strerror or error}") from None
    good = sum(map(table.passed, results))
    print(f"{good} of {len(results)} passed; {out / 'rehearsals.html'}")
    sys.exit(good < len(results))


def hand_over() -> None:
    """To a container or a Slurm job, in which this command runs again, here."""
    if FLAGS.engine == "docker":
        command = _in_docker()
    else:
        rest = engines.same_flags(FLAGS, [__name__], ["sbatch_args"])
        command = engines.on_slurm("scripts.rehearse", rest, "rehearsal", FLAGS.gpus, FLAGS.sbatch_args, FLAGS.dry_run)
    if FLAGS.dry_run:
        print(shlex.join(command))
        return
    sys.stdout.flush()
    os.execvp(command[0], command)


def _in_docker() -> list[str]:
    if FLAGS.harness_path is not None:
        raise UsageError("--harness_path: an image has its own harness, chosen by the build argument HARNESS_COMMIT")
    if FLAGS.submission_path:
        raise UsageError("--engine=docker rehearses submissions of the image: name them by --submission")
    gpus = "all" if FLAGS.gpus is None else FLAGS.gpus
    settings = {"REHEARSE": 1, "GPUS": gpus, "DATA_DIR": FLAGS.data_dir, "EXPERIMENT_DIR": FLAGS.out}
    rest = engines.same_flags(
        FLAGS, [__name__], ["workload", "all", "submission", "data_dir", "out", "gpus", "sbatch_args"]
    )
    workloads = ",".join(WORKLOADS if FLAGS.all else FLAGS.workload)
    return engines.in_docker(workloads, ",".join(FLAGS.submission), rest, settings, FLAGS.dry_run)


if __name__ == "__main__":
    start(run, "the same command goes on with the rehearsals that are missing")

"""One rehearsal: begin the run, kill it after a checkpoint, resume it, look at what it left."""

import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from launching import official
from launching.local_jobs import end_with_parent
from launching.official_workloads import needs_of
from launching.rehearsal import checks, data, frameworks, sizes
from launching.rehearsal.record import Record
from weight_averaging.errors import UsageError
from weight_averaging.words import counted

ROOT = Path(__file__).parents[2]  # of this repository
POLL_SECONDS = 0.1
SEED = 1
KILLED = -9  # of a part that is over after the kill that it was begun for
FULL = 2**20  # bytes that are free on a disk without space for a checkpoint, at most
OUT_OF_MEMORY = ("OutOfMemoryError", "RESOURCE_EXHAUSTED")  # of PyTorch and of JAX
STAGE = "launching.rehearsal.stage"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One rehearsal of the matrix.

    Attributes:
        submission: its name in tables.
        submission_path: as the harness takes it, relative to the working directory.
        search_space: of which the first point is taken; None under self-tuning.
        gpus: 0 on the CPU; there `ranks` processes stand for GPUs.
        full_batch: whether batches are the official ones.
    """

    workload: str
    framework: str
    submission: str
    submission_path: str
    search_space: str | None
    gpus: int
    ranks: int = 1
    full_batch: bool = False

    @property
    def name(self) -> str:
        several = f"-{self.devices}" if self.devices > 1 else ""
        return f"{self.workload}-{self.framework}-{self.submission}{several}{'-full' if self.full_batch else ''}"

    @property
    def devices(self) -> int:
        return max(self.gpus, self.ranks)


@dataclass(frozen=True)
class Place:
    """Where rehearsals are.

    Attributes:
        data: the root of the small data sets.
        out: of results, one folder a rehearsal.
        harness_path: of the harness's sources; None: the installed one.
    """

    data: Path
    out: Path
    harness_path: Path | None = None

    def environment(self) -> dict[str, str]:
        sources = [os.getcwd(), str(ROOT), *([str(self.harness_path)] if self.harness_path else [])]
        return {"PYTHONPATH": os.pathsep.join(dict.fromkeys(sources))}


def result_of(place: Place, cell: Cell) -> dict[str, Any] | None:
    """Of a rehearsal that is over; None if it was not made or not finished."""
    path = place.out / cell.name / "result.json"
    return json.loads(path.read_text()) if path.exists() else None


def results_in(place: Place) -> list[dict[str, Any]]:
    """Of all rehearsals that are over, in the order of frameworks and workloads."""
    found = [json.loads(path.read_text()) for path in place.out.glob("*/result.json")]
    cells = [result["cell"] for result in found]
    keys = [(c["framework"] == "jax", c["workload"], c["submission"], c["ranks"], c["full_batch"]) for c in cells]
    return [found[number] for number in sorted(range(len(found)), key=keys.__getitem__)]


def rehearse(place: Place, cell: Cell) -> dict[str, Any]:
    """Make the small data where it is missing, then run, kill, resume and check.

    A full batch for which the devices have no memory is halved until they have.

    Returns:
        What is also in `<out>/<name>/result.json`: the cell, its checks, what was measured, what the run said last.

    Raises:
        UsageError: the run cannot be begun at all, or its results cannot be written.
    """
    workload = sizes.rehearsed_name(cell.workload, on_cpu=cell.gpus == 0)
    if note := official.check_harness(workload, place.harness_path):
        print(f"note: {note}", file=sys.stderr)
    needs = needs_of(workload, cell.framework)
    seen = official.environment(cell.framework, cell.gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
    environment = {**os.environ, **place.environment(), **seen}
    # TensorFlow alone writes the data, and takes all GPUs it sees.
    data.prepare(place.data, needs.folder, sys.executable, {**environment, "CUDA_VISIBLE_DEVICES": ""})
    official.check_data(workload, str(place.data), cell.framework)

    folder = place.out / cell.name
    new = not place.out.exists()
    shutil.rmtree(folder, ignore_errors=True)
    try:
        for halvings in itertools.count():
            result = _rehearse(place, cell, workload, folder, environment, halvings)
            if not _to_halve(result, folder):
                break
            shutil.rmtree(folder)
        unfinished = folder / "result.unfinished"
        unfinished.write_text(json.dumps(result, indent=1))
        os.replace(unfinished, folder / "result.json")
        return result
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        if new:
            shutil.rmtree(place.out, ignore_errors=True)
        raise UsageError(f"--out={place.out}: {error.strerror or error}") from None


def _to_halve(result: dict[str, Any], folder: Path) -> bool:
    """Whether the official batch, or a half of it, took more memory than the devices have, and can be halved."""
    # An evaluation of the official size that wants more is no matter of this batch: the runner goes on after it.
    made = next(check["passed"] for check in result["checks"] if check["name"] == "updates")
    batch, devices = result["batch"], max(result["cell"]["gpus"], result["cell"]["ranks"])
    if made or not result["cell"]["full_batch"] or not batch or batch % (2 * devices):
        return False
    said = (folder / "log.txt").read_text(errors="replace")
    return any(words in said for words in OUT_OF_MEMORY)


def _rehearse(
    place: Place, cell: Cell, workload: str, folder: Path, environment: dict[str, str], halvings: int
) -> dict[str, Any]:
    """As `rehearse`, into a folder that is to be made. OSError where it cannot be written to."""
    (folder / "record").mkdir(parents=True)
    size = sizes.settings(workload, cell.devices, cell.gpus == 0, cell.full_batch, halvings)
    compiled = frameworks.soon_compiled(folder / "compiled") if cell.framework == "jax" and cell.gpus == 0 else {}
    begun = time.monotonic()
    codes = []
    for part in (1, 2):
        settings = folder / f"stage_{part}.json"
        asked = {"framework": cell.framework, "record": str(folder / "record"), "part": part, "on_cpu": cell.gpus == 0}
        settings.write_text(json.dumps({**asked, "size": size}))
        stop = size["killed_after"] if part == 1 else None
        command = _command(place, cell, workload, folder, size, resumed=part == 2)
        variables = {**compiled, **environment, "REHEARSAL": str(settings)}
        codes.append(_run(command, variables, folder, Record(folder / "record"), stop, size["seconds"]))
        if part == 1 and codes[0] != KILLED:
            break
    said = _last_error(folder / "log.txt")
    if codes != [KILLED, 0] and (shutil.disk_usage(folder).free < FULL or os.strerror(errno.ENOSPC) in said):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # which the log may have had no space to say
    record = Record(folder / "record")
    result: dict[str, Any] = {
        "cell": asdict(cell) | {"search_space": None if cell.search_space is None else Path(cell.search_space).name},
        "workload": workload,
        **record.batch(),
        "seconds": time.monotonic() - begun,
        "checks": [asdict(c) for c in checks.checks(record, size["updates"], size["killed_after"], codes)],
        "measured": asdict(checks.measured(record)),
        "said": said,
    }
    _scored(folder, result["checks"])
    for name in ("runs", "compiled"):  # checkpoints take gigabytes
        shutil.rmtree(folder / name, ignore_errors=True)
    return result


def _command(place: Place, cell: Cell, workload: str, folder: Path, size: dict[str, Any], resumed: bool) -> list[str]:
    """The command of a real run, its runner with the stage around it."""
    flags: dict[str, Any] = {
        "tuning_ruleset": "self" if cell.search_space is None else "external",
        "tuning_search_space": None if cell.search_space is None else str(Path(cell.search_space).absolute()),
        "num_tuning_trials": 1,
        "rng_seed": SEED,
        "max_global_steps": size["updates"],
        "resume_last_run": True if resumed else None,
    }
    words = official.command(
        cell.framework,
        workload,
        cell.submission_path,
        cell.gpus or cell.ranks,
        str(place.data.absolute()),
        str((folder / "runs").absolute()),
        f"{cell.submission}/study_{SEED}",
        flags,
        torch_compile=None if cell.gpus else False,
    )
    return [STAGE if word == "submission_runner" else word for word in words]


def _run(
    command: list[str],
    environment: dict[str, str],
    folder: Path,
    record: Record,
    killed_after: int | None,
    seconds: int,
) -> int:
    """The exit status; KILLED if it was killed after a checkpoint, as asked.

    It works in its folder: ImageNet's lists of files are left in the working directory.
    """
    with open(folder / "log.txt", "a") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment, cwd=folder,
            preexec_fn=end_with_parent,
        )  # fmt: skip
    deadline = time.monotonic() + seconds
    try:
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            if time.monotonic() > deadline:
                kill(process.pid)
                process.wait()
                with open(folder / "log.txt", "a") as log:
                    log.write(f"Error: not done after {seconds} s\n")
                return 124
            if killed_after is not None and _saved(record) >= killed_after:
                kill(process.pid)
                process.wait()
                return KILLED
    finally:
        if process.poll() is None:  # Ctrl-C
            kill(process.pid)
            process.wait()
    if process.returncode >= 0:
        return process.returncode
    with open(folder / "log.txt", "a") as log:
        log.write(
            f"Error: ended by signal {-process.returncode} from outside; 9 (SIGKILL) comes where memory ran out\n"
        )
    return 128 - process.returncode


def kill(pid: int) -> None:
    """The process and all that it has started: ranks lead process groups of their own, loaders have workers."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family[1:], timeout=30)


def _saved(record: Record) -> int:
    return max((event["step"] for event in record.events() if event["event"] == "saved"), default=0)


def _last_error(log: Path) -> str:
    """The last line that names an error; "" if there is none."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    errors = [line.strip() for line in lines if _names_an_error(line)]
    return errors[-1][:300] if errors else ""


def _names_an_error(line: str) -> bool:
    first = line.split(":")[0]
    return (first.endswith("Error") or first.endswith("Exception")) and " " not in first.strip()


def _scored(folder: Path, found: list[dict[str, Any]]) -> None:
    """Add whether the logs are read as those of a real run."""
    from analysis.reading import logs

    try:
        read = logs.read([str(folder / "runs")])
        rows = read.evaluations
        steps = [int(step) for step in rows["global_step"]]
        good = bool(steps) and steps == sorted(steps) and len(read.runs) == 1
        says = f"{counted(len(steps), 'evaluation')}, {read.runs['workload'].iloc[0]}"
    except (UsageError, KeyError, IndexError) as error:
        good, says = False, str(error)
    found.append({"name": "logs", "passed": good, "says": says})

"""Try every submission below a folder, alone and averaged, on a miniature; print a table of what works.

    python -m scripts.published_submissions --folder=leaderboard/submissions --workload=mini_finewebedu_lm --updates=30

Each is trained twice from the same seed: alone, and by `submissions.averaged` with LAWA of the latest 5 updates. It
reports whether the raw weights are bit for bit the same after every update, evaluations in between included. It also
reports how far the evaluated weights are from the float64 mean of the raw ones, as a share of the largest weight. One
that brings an average of its own to evaluations is averaged on top, with a note. A submission for external tuning gets
the first point of the search space beside it. Results are added where they ended: --out has a line each.
"""

import atexit
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from absl import flags

from launching import average_submission
from miniperf import frameworks, runner, search, submission, workloads
from miniperf.settings import Settings
from scripts.start import start
from submissions.averaged import base
from weight_averaging import averages
from weight_averaging.errors import UsageError

FLAGS = flags.FLAGS
WINDOW = 5
ROOT = Path(__file__).resolve().parent.parent

flags.DEFINE_string("folder", None, "Folder with submissions, however deep, below the working directory.")
flags.DEFINE_string("workload", "mini_finewebedu_lm", "Miniature on which each is tried; it needs both frameworks.")
flags.DEFINE_integer("updates", 30, "Updates of each run; a third and two thirds of the way there is an evaluation.")
flags.DEFINE_string("out", "runs/published_submissions.jsonl", "File of results, a line each.")
flags.DEFINE_integer("seconds", 600, "Seconds after which a submission is given up.")
flags.DEFINE_string("one", None, "Path of the one submission that is tried, in this process. Its line is printed.")


class Watched(ModuleType):
    """A submission whose weights are noted after each update and before each evaluation."""

    def __init__(self, module: Any, weights: Any) -> None:
        super().__init__(module.__name__ if isinstance(module, ModuleType) else "averaged")
        self.module, self.weights = module, weights
        self.init_optimizer_state, self.data_selection = module.init_optimizer_state, module.data_selection
        self.get_batch_size = module.get_batch_size
        self.raw: list[np.ndarray] = []
        self.seen: dict[int, np.ndarray] = {}
        if hasattr(module, "prepare_for_eval"):
            self.prepare_for_eval = self._prepare
        self.update_params = self._update
        # The runner looks for `train_state` in it.
        self._update.__func__.__signature__ = runner.signature(module.update_params)  # type: ignore[attr-defined]

    def _update(self, **given: Any) -> Any:
        result = self.module.update_params(**given)
        self.raw.append(self.weights(result[1]))
        return result

    def _prepare(self, **given: Any) -> Any:
        result = self.module.prepare_for_eval(**given)
        self.seen[len(self.raw)] = self.weights(result[1])
        return result


def _weights(framework: str) -> Any:
    def of_module(model: Any) -> np.ndarray:
        return np.concatenate([p.detach().cpu().double().numpy().reshape(-1) for p in model.parameters()])

    def of_tree(params: Any) -> np.ndarray:
        import jax

        return np.concatenate([np.array(leaf, np.float64).reshape(-1) for leaf in jax.tree.leaves(params)])

    return of_module if framework == "pytorch" else of_tree


def _importable(theirs: average_submission.Base) -> Path:
    """Its file; a copy where it imports its own modules by the name of the place where its author had them."""
    if not average_submission.with_relative_imports(theirs):
        return theirs.path
    folder = Path(FLAGS.out).parent / f"{theirs.name}_{os.getpid()}"
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    average_submission.write(ROOT, theirs, "lawa", {}, None, folder, {})
    return folder / "base" / theirs.path.name


def try_one(path: Path) -> dict[str, Any]:
    """Both runs of a submission, and what they tell."""
    theirs = average_submission.read(path)
    framework = theirs.framework
    frameworks.check(framework)
    module = submission.load(str(_importable(theirs)), framework)
    spaces = sorted(path.parent.glob("*search_space*.json"))
    point = search.load(spaces[0], 1)[0] if spaces else None
    described = averages.LAWA(interval=1, window=WINDOW)
    averaged_by = importlib.import_module(f"submissions.averaged.{framework}").averaged
    workload = workloads.make(FLAGS.workload, framework)
    settings = Settings(
        workload_name=FLAGS.workload,
        submission_path=str(path),
        rng_seed=0,
        batch_size=workload.batch_size,
        framework=framework,
        max_global_steps=FLAGS.updates,
        eval_every_n_steps=max(1, FLAGS.updates // 3),
        continue_after_target=True,
        save_checkpoints=False,
        tuning_ruleset="external" if spaces else "self",
    )

    def trained(made: Any, how: str) -> Watched:
        watched = Watched(made, _weights(framework))
        with tempfile.TemporaryDirectory() as folder:
            try:
                runner.train_once(workloads.make(FLAGS.workload, framework), watched, point, settings, Path(folder), {})
            except Exception as error:
                raise RuntimeError(f"{how}: {type(error).__name__}: {error}") from error
        return watched

    alone = trained(module, "alone")
    on_top = False
    try:
        averaged = trained(averaged_by(module, described), "averaged")
    except RuntimeError as error:
        if base.REMEDY not in str(error):
            raise
        on_top = True
        averaged = trained(averaged_by(module, described, on_top=True), "averaged on top")
    same = [bool((one == other).all()) for one, other in zip(alone.raw, averaged.raw, strict=True)]
    held: deque[np.ndarray] = deque(maxlen=WINDOW)
    worst = 0.0
    for step, raw in enumerate(averaged.raw, 1):
        held.append(raw)
        if step in averaged.seen and len(held) == WINDOW:
            mean = np.mean(held, axis=0)
            worst = max(worst, float(np.abs(averaged.seen[step] - mean).max() / np.abs(mean).max()))
    moved = float(np.abs(alone.raw[-1] - alone.raw[0]).max())
    why = "refused without on_top: it brings an average of its own" if on_top else ""
    return {"framework": framework, "raw_equal": all(same), "off_by": worst, "moved": moved, "why": why}


def run() -> None:
    if FLAGS.one:
        print(json.dumps(_told(Path(FLAGS.one))))
        return
    if not FLAGS.folder or not (paths := sorted(Path(FLAGS.folder).rglob("submission.py"))):
        raise UsageError(f"--folder={FLAGS.folder} has no submission.py below it")
    out = Path(FLAGS.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    rows = {row["path"]: row for row in known if row["workload"] == FLAGS.workload}
    for number, path in enumerate(paths, 1):
        if str(path) not in rows:
            rows[str(path)] = row = {"path": str(path), "workload": FLAGS.workload, **_in_a_process(path)}
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")
        print(f"{number}/{len(paths)} {path.parent}: {_verdict(rows[str(path)])}", file=sys.stderr, flush=True)
    print("| submission | framework | averaged | why not |\n|---|---|---|---|")
    for path in paths:
        row = rows[str(path)]
        print(
            f"| {path.parent.relative_to(FLAGS.folder)} | {row.get('framework', '')} | {_verdict(row)} | {row['why']} |"
        )


def _told(path: Path) -> dict[str, Any]:
    try:
        return try_one(path)
    except Exception as error:  # whatever somebody's file does, it is a row of the table
        text = " ".join(str(error).split())[:300] or type(error).__name__
        return {"why": text if isinstance(error, UsageError | RuntimeError) else f"{type(error).__name__}: {text}"}


def _in_a_process(path: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "scripts.published_submissions", f"--one={path}", f"--workload={FLAGS.workload}"]
    command.append(f"--out={FLAGS.out}")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}
    try:
        done = subprocess.run(
            [*command, f"--updates={FLAGS.updates}"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=FLAGS.seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"why": f"not done after {FLAGS.seconds} s"}
    last = (done.stdout.strip().splitlines() or [""])[-1]
    if not last.startswith("{"):
        return {"why": " ".join((done.stderr or done.stdout).split())[-300:]}
    return json.loads(last)  # type: ignore[no-any-return]


def _verdict(row: dict[str, Any]) -> str:
    if "raw_equal" not in row:
        return "no"
    if not row["raw_equal"]:
        return "raw weights differ"
    if row["off_by"] > 1e-6:
        return f"off by {row['off_by']:.1e}"
    return f"yes ({row['off_by']:.0e})" if row["moved"] else "yes, but no weight has moved"


if __name__ == "__main__":
    start(run)

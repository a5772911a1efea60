"""A bundle works alone, where the benchmark puts it, and trains as the original does."""

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from launching import bundle, check_code, check_space, submission_info
from tests.support.warm_python import python
from weight_averaging.errors import UsageError

ROOT = Path.cwd()
SELF_TUNING = ["nadamw_self", "lawa_self", "ema_self"]  # in both frameworks
NAMES = ["nadamw", "nadamw_no_decay", "lawa", "lawa_no_decay", "ema", "ema_no_decay", *SELF_TUNING]
TRAJECTORY = """
import sys
from tests.processes.official_driver import FLAGS, RUNS, trajectory
module, which, FLAGS.framework = sys.argv[1:]
print(trajectory(RUNS[FLAGS.framework], module, "mnist", 4)[1:])
assert bool({"submissions", "weight_averaging", "miniperf"} & set(sys.modules)) == (which == "original")
"""


def write(name: str, folder: Path, framework: str = "pytorch") -> list[Path]:
    space = None if name in SELF_TUNING else ROOT / f"tuning_search_spaces/{name}.json"
    return bundle.write(ROOT, f"{framework}/{name}", space, folder)


@pytest.mark.parametrize("framework", ["pytorch", "jax"])
@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_is_whole_and_has_nothing_to_mend(name, framework, tmp_path):
    files = {str(path.relative_to(tmp_path / name)) for path in write(name, tmp_path / name, framework)}
    assert {"submission.py", "__init__.py", "LICENSE"} <= files
    assert ("tuning_search_space.json" in files) == (name not in SELF_TUNING)
    assert check_code.check(tmp_path / name / "submission.py") == []
    if name not in SELF_TUNING:
        assert check_space.check(tmp_path / name / "tuning_search_space.json") == []
    # Every relative import that is ever made ends inside the bundle, at a module that is there.
    for path in (tmp_path / name).rglob("*.py"):
        tree = ast.parse(path.read_text())
        conditions = [node for node in ast.walk(tree) if isinstance(node, ast.If)]
        blocks = [node for node in conditions if ast.unparse(node.test) == "TYPE_CHECKING"]
        for_types = {id(node) for block in blocks for node in ast.walk(block)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level and id(node) not in for_types:
                target = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
                assert target.with_suffix(".py").is_file() or (target / "__init__.py").is_file()
                assert (tmp_path / name) in target.parents


@pytest.mark.skipif(importlib.util.find_spec("algoperf") is None, reason="algoperf is not installed")
@pytest.mark.parametrize("framework", ["pytorch", "jax"])
def test_a_bundle_trains_as_the_original(framework, tmp_path):
    package = "submissions_algorithms.submissions.external_tuning.lawa"
    write("lawa", tmp_path.joinpath(*package.split(".")), framework)
    (tmp_path / "tests").mkdir()
    # Else the harness's `tests` are taken.
    for name in ("__init__.py", "official_driver.py", "official_batches.py", "reference.py"):
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests")
    outputs = []
    for folder, module, which in ((ROOT, "lawa", "original"), (tmp_path, f"{package}.submission", "bundle")):
        environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-P", "-c", TRAJECTORY, module, which, framework]
        result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
        assert result.returncode == 0, result.stderr[-2000:]
        outputs.append(result.stdout)
    assert outputs[0] == outputs[1]


def rows(folder: Path, path: str, *flags: str) -> pd.DataFrame:
    """What a run of miniperf in `folder` measures, without the clock."""
    command = [
        python(), "-m", "miniperf.submission_runner", "--workload=mini_imagenet_vit",
        f"--submission_path={path}", "--max_global_steps=4", "--eval_every_n_steps=2", "--rng_seed=3",
        f"--experiment_dir={folder / 'runs'}", f"--experiment_name={len(flags)}", *flags,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    table = pd.read_csv(folder / f"runs/{len(flags)}/mini_imagenet_vit_pytorch/trial_1/eval_measurements.csv")
    clock = ["score", "total_duration", *[name for name in table if name.startswith("accumulated_")]]
    return table.drop(columns=clock)


def test_a_self_tuning_bundle_trains_as_external_tuning_does_with_its_point(tmp_path):
    write("lawa_self", tmp_path / "mine")
    write("lawa", tmp_path / "tuned")
    point = json.loads((tmp_path / "tuned" / "tuning_search_space.json").read_text())[4]  # that of nadamw_baselinev05
    (tmp_path / "space.json").write_text(json.dumps([point]))
    own = rows(tmp_path, "mine/submission.py", "--tuning_ruleset=self")
    given = rows(tmp_path, "tuned/submission.py", "--tuning_ruleset=external", "--tuning_search_space=space.json")
    pd.testing.assert_frame_equal(own, given)
    with pytest.raises(AssertionError, match="hyperparameters of its own: run with --tuning_ruleset=self"):
        rows(tmp_path, "mine/submission.py", "--tuning_search_space=space.json")


def test_an_import_that_cannot_be_made_relative_is_refused(tmp_path):
    (tmp_path / "submissions" / "mine").mkdir(parents=True)
    (tmp_path / "lib.py").touch()
    (tmp_path / "submissions" / "mine" / "submission.py").write_text("import lib\n")
    with pytest.raises(UsageError, match=r"submission\.py:1: write `from"):
        bundle.write(tmp_path, "mine", None, tmp_path / "out")


def test_a_folder_is_not_written_over(tmp_path):
    with pytest.raises(UsageError, match="exists"):
        write("lawa", tmp_path)


def make(folder: Path, *flags: str) -> subprocess.CompletedProcess:
    command = [
        python(), "-m", "scripts.bundle", "--authors=A. Name, B. Name",
        "--affiliations=Some: Place", f"--output_dir={folder}", *flags,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("submission", ["ema", "ema_self"])
def test_the_command_tells_the_folder_and_the_pull_request_the_same(submission, tmp_path):
    result = make(tmp_path, f"--submission={submission}")
    assert result.returncode == 0, result.stderr
    name = f"weight_averaging_{submission}"
    fields = yaml.safe_load((tmp_path / name / "submission_info.yml").read_text())
    block = (tmp_path / f"{name}.pull_request.md").read_text().split("```yaml\n")[1].split("\n```")[0]
    assert yaml.safe_load(block) == fields
    assert list(fields) == list(submission_info.FIELDS)
    assert fields["submission_folder"] == name
    assert fields["ruleset"] == ("external" if submission == "ema" else "self-tuning")
    assert (tmp_path / name / "tuning_search_space.json").is_file() == (submission == "ema")
    assert (fields["framework"], fields["version"]) == ("PyTorch", "1.0")
    assert fields["affiliations"] == "Some: Place"
    check = [python(), "-m", "scripts.check_submission", f"--submission_path={tmp_path / name}/submission.py"]
    for info in (tmp_path / name / "submission_info.yml", tmp_path / f"{name}.pull_request.md"):
        result = subprocess.run([*check, f"--submission_info={info}"], capture_output=True, text=True, check=False)
        said = f"nothing found in {tmp_path / name}/submission.py, {info}\n"
        assert (result.returncode, result.stdout) == (0, said), result.stdout


def test_a_bundle_says_what_its_optimizer_needs(tmp_path):
    result = make(tmp_path, "--submission=soap_lawa")
    assert result.returncode == 0, result.stderr
    requirements = (tmp_path / "weight_averaging_soap_lawa" / "requirements.txt").read_text()
    assert requirements == "# The optimizer itself, soap.\npytorch_optimizer==4.1.0\n"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--authors="], "--authors: must not be empty"),
        (["--authors=A # B"], "--authors: give one line without '#'"),
        (["--affiliations=A\nB"], "--affiliations: give one line without"),
        (["--name=My-Submission"], "--name: give the folder's own name, of small letters, digits and _"),
        (["--tuning_search_space=no/such.json"], "--tuning_search_space: there is no no/such.json"),
        (
            ["--submission=ema_self", "--tuning_search_space=tuning_search_spaces/ema.json"],
            "--tuning_search_space=tuning_search_spaces/ema.json: ema_self has hyperparameters of its own",
        ),
        (["--submission=lawaa"], "--submission=lawaa is unknown; choose from adamw,"),
    ],
)
def test_the_command_refuses_what_the_leaderboard_would_not_take(flags, words, tmp_path):
    result = make(tmp_path, "--submission=ema", *flags)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())

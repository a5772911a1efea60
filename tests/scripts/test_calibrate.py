"""The runs of a calibration, by the pool of local jobs: each once, and one that fails is named."""

import subprocess

from tests.support.warm_python import python

CODE = """
import sys
from launching.suite_jobs import Training
from miniperf.calibration import Run
from scripts import calibrate
from weight_averaging.errors import UsageError

TRAIN = "import sys; from pathlib import Path; folder, steps, trial = Path(sys.argv[1]), *sys.argv[2:]; " \\
    "assert trial != '9'; Path(folder, 'checkpoint_' + steps).mkdir(parents=True); " \\
    "table = chr(10).join(['global_step,validation/loss,trial', steps + ',1.0,' + trial]); " \\
    "Path(folder, 'eval_measurements.csv').write_text(table)"
Training.command = lambda job: [
    sys.executable, "-S", "-c", TRAIN, str(job.folder(job.trials[0])), str(job.steps), str(job.trials[0])
]
calibrate.FLAGS(["calibrate", "--experiment_dir=" + sys.argv[1], "--jobs=2"])
runs = [Run("mini_criteo1tb", "nadamw", 0, trial) for trial in (1, 2, 3)]
for _ in range(2):  # the second time they are there: the folders could not be made again
    print("trials", [table["trial"].tolist() for table in calibrate.tables(runs)], file=sys.stderr)
try:
    calibrate.tables([runs[0]._replace(trial=9)])
except UsageError as error:
    print(error, file=sys.stderr)
"""


def test_runs_are_made_once_and_a_failed_one_is_named(tmp_path):
    ended = subprocess.run([python(), "-c", CODE, str(tmp_path)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("trials [[1], [2], [3]]") == 2, ended.stderr
    assert "trial_9: the run failed: see " in ended.stderr
    assert "AssertionError" in (tmp_path / "logs" / "nadamw_mini_criteo1tb_0_9.txt").read_text()

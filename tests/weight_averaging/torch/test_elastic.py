"""A run of several ranks, of which one is killed, goes on with those that are left (the run is in elastic_ranks.py)."""

import os
import shutil
import signal
import subprocess
import time

import pytest
import torch.distributed

from tests.support.killing import newest
from tests.support.warm_python import python
from tests.weight_averaging.torch.test_ranks import of_meshes, run

SECONDS = 300  # for all of a run, on a busy machine


@of_meshes
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_a_run_goes_on_with_fewer_ranks_after_one_was_killed(tmp_path, kind):
    """And ends with the averages of a run that was never broken off, bit for bit."""
    with pytest.raises(AssertionError, match="SIGKILL"):
        run(4, tmp_path, f"run:{kind}:{tmp_path}:2", module="elastic_ranks")
    assert newest(tmp_path) == 6
    for path in tmp_path.glob("writing_*"):  # by whoever starts again
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    run(3, tmp_path, f"run:{kind}:{tmp_path}:9", module="elastic_ranks")


class Agents:
    """Agents of torchrun on this machine. What they and their workers print is in files, shown if the test fails."""

    def __init__(self, folder) -> None:
        self._folder, self.started = folder, []

    def start(self, *words: str) -> None:
        number = len(self.started)
        # Without the last one, workers that are started anew read the addresses of those before them in torch's store.
        local = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        with (self._folder / f"agent_{number}.txt").open("w") as output:
            self.started.append(
                subprocess.Popen(
                    [python(), "-m", "torch.distributed.run", "--local_addr=127.0.0.1", *words],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **local},
                )
            )

    def printed(self) -> str:
        files = sorted(self._folder.glob("agent_*.txt"))
        return "\n".join(f"--- {file.name}\n{file.read_text()[-4000:]}" for file in files)

    def ended(self) -> list[int]:
        """Exit statuses, once all have ended."""
        until = time.monotonic() + SECONDS
        try:
            return [agent.wait(max(0.0, until - time.monotonic())) for agent in self.started]
        except subprocess.TimeoutExpired:
            pytest.fail(f"no end after {SECONDS} s:\n{self.printed()}")
        finally:
            for agent in self.started:
                if agent.poll() is None:
                    agent.send_signal(signal.SIGTERM)  # which the agent hands to its workers


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_torchrun_restarts_both_workers_after_one_is_killed(tmp_path):
    """`torchrun --nproc_per_node=2 --max_restarts=1`."""
    agents = Agents(tmp_path)
    agents.start(
        "--standalone",
        "--nproc_per_node=2",
        "--max_restarts=1",
        "--monitor_interval=0.2",
        *("-m", "tests.processes.elastic_ranks", "ddp", str(tmp_path)),
    )
    assert agents.ended() == [0], agents.printed()
    assert (tmp_path / "killed").exists()
    assert agents.printed().count("2 ranks went on from update 6 with ddp") == 2, agents.printed()

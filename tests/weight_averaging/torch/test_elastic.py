"""A run of several ranks, of which one is killed, goes on with those that are left (the run is in elastic_ranks.py)."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch.distributed

from tests.support.killing import newest
from tests.support.warm_python import python
from tests.weight_averaging.torch.test_ranks import of_meshes, run

SECONDS = 600  # for all of a run, on a busy machine
# torchrun walks through all imported modules as it speaks with the other agents: with those of `python()`, for minutes.
AGENT = "import os; os.environ['AGENT'] = str(os.getpid()); from torch.distributed.run import main; main()"


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
        local = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "NODE": str(number), "PYTHON_EXEC": python()}
        # Without this, workers that are started anew read the addresses of those before them in torch's store.
        local["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        with (self._folder / f"agent_{number}.txt").open("w") as output:
            self.started.append(
                subprocess.Popen(
                    [sys.executable, "-c", AGENT, "--local_addr=127.0.0.1", *words],
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(port: int) -> None:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail(f"nobody listens at port {port} after {SECONDS} s")


@of_meshes
def test_torchrun_goes_on_with_three_nodes_after_one_of_four_is_killed(tmp_path):
    """`torchrun --nnodes=3:4`: agent and worker of a node die; the rendezvous starts the others anew, by themselves."""
    agents, port = Agents(tmp_path), free_port()
    words = [
        "--nnodes=3:4",
        "--nproc_per_node=1",
        "--max_restarts=3",
        "--monitor_interval=0.2",
        "--rdzv_backend=c10d",
        "--rdzv_id=averaging",
        f"--rdzv_endpoint=127.0.0.1:{port}",
        # Where three nodes have come, a fourth is waited for that many seconds; one that is silent for 15 s is gone.
        "--rdzv_conf=last_call_timeout=15",
        "-m",
        "tests.processes.elastic_ranks",
        "fsdp2",
        str(tmp_path),
        "3",
    ]
    agents.start(*words)
    wait_for(port)  # the first agent has the store of the rendezvous, and stays
    for _ in range(3):
        agents.start(*words)
    statuses = agents.ended()
    assert statuses == [0, 0, 0, -signal.SIGKILL], agents.printed()
    assert (tmp_path / "killed").exists()
    assert agents.printed().count("3 ranks went on from update 6 with fsdp2") == 3, agents.printed()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_torchrun_restarts_both_workers_after_one_is_killed(tmp_path):
    """`torchrun --nproc_per_node=2 --max_restarts=1`."""
    agents = Agents(tmp_path)
    agents.start(
        "--standalone",
        "--nproc_per_node=2",
        "--max_restarts=1",
        "--monitor_interval=0.2",
        *("-m", "tests.processes.elastic_ranks", "ddp", str(tmp_path), "none"),
    )
    assert agents.ended() == [0], agents.printed()
    assert (tmp_path / "killed").exists()
    assert agents.printed().count("2 ranks went on from update 6 with ddp") == 2, agents.printed()

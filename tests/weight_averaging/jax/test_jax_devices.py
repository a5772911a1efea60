"""Parameters on four devices, in one process that has them and in two that share them."""

import os
import socket
import subprocess
import sys


def started(devices: int, module: str, *arguments: str) -> subprocess.Popen:
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", f"tests.processes.{module}", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env={**os.environ, **flags}, stdout=pipe, stderr=pipe, text=True)


def ended_well(process: subprocess.Popen) -> None:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert out.strip().splitlines()[-1] == "ok", err


def test_on_four_devices_shardings_are_kept_and_nothing_is_gathered():
    ended_well(started(4, "jax_device_checks"))


def test_two_processes_save_and_restore_a_window_in_host_memory(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    both = [started(2, "jax_two_processes", str(number), port, str(tmp_path)) for number in (0, 1)]
    for process in both:
        ended_well(process)

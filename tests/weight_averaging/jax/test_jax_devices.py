"""Parameters on four devices, in a process that has them."""

import os
import subprocess
import sys


def test_on_four_devices_shardings_are_kept_and_nothing_is_gathered():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.processes.jax_device_checks"]
    result = subprocess.run(command, env={**os.environ, **flags}, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "ok", result.stderr

# Scripts, run by tests in processes of their own.
collect_ignore_glob = ["official_*.py", "jax_device_checks.py"]

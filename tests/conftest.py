collect_ignore_glob = ["official_*.py"]  # scripts, run by test_official*.py in processes of their own

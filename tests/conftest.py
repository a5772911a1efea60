collect_ignore = ["official_driver.py"]  # a script, run by test_official.py

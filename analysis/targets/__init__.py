"""What counts as reached: each workload's target and budget, by version of the benchmark."""

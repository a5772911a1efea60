"""Starting runs under the official AlgoPerf harness: what each workload needs, checks, commands, sweeps."""

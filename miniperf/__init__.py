"""miniperf: the AlgoPerf API on one CPU, with miniature workloads and a runner that takes the official flags."""

"""What averaging costs, as ratios within one run: ours, the peers, the memory-traffic limit."""

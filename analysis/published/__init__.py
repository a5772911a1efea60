"""What published AlgoPerf logs say: a module for each leaderboard, whose `write` makes its tables and figures."""

"""The hyperparameters of the self-tuning submissions: one point, the same for every workload."""

# That of `nadamw_baselinev05` on the leaderboard of 2026, which is the fifth of the published NadamW baseline's list.
NADAMW = {
    "learning_rate": 0.0017486387539278373,
    "one_minus_beta1": 0.06733926164,
    "beta2": 0.9955159689799007,
    "weight_decay": 0.08121616522670176,
    "warmup_factor": 0.02,
    "dropout_rate": 0.1,
}
# The defaults of SOAP's authors (Vyas et al., arXiv 2409.11321). Untuned on the benchmark.
SOAP = {
    "learning_rate": 0.003,
    "one_minus_beta1": 0.05,
    "beta2": 0.95,
    "weight_decay": 0.01,
    "precondition_frequency": 10,
    "warmup_factor": 0.02,
}
# Ajroldi et al. (arXiv 2502.06761): the average covers about 1 % of training, in twenty snapshots.
AVERAGING = {"averaging_horizon": 0.01, "averaging_window": 20}

# An average over a seventh of the updates so far.
GROWING = {"averaging_share": 0.15}

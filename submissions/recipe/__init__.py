"""What the submissions share. Here what no framework is needed for: hyperparameters and what each may be, batch sizes,
schedules as functions of the step, what is averaged. In `pytorch/` and `jax/` what is built of it: the update step,
optimizers, averagers."""

"""Training: configuration, state, step, schedule, checkpoints, metrics and the loop over them."""

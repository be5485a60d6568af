"""Training: config, schedule, objective, state, step, evaluation, and the trainer that runs them."""

"""Training: state, step, optimizer, checkpoints, metrics and the report of a run."""

"""Training: state, step, optimizer, checkpoints, and what is told of them."""

"""Training: configuration, loop, losses, checkpoints, several processes."""

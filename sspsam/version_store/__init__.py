"""Fine-tuned versions: published, promoted, rolled back, pruned."""

"""Batches: samples streamed, augmented, embedded and grouped."""

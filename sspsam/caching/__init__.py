"""Caches of features and embeddings, in memory and on disk."""
